"""Columns of categories: encoders within pipelines answer as scikit-learn does, for what they know and what they do not."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import ensemble, linear_model, neural_network, svm
from sklearn.base import clone
from sklearn.compose import make_column_selector, make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler, TargetEncoder

from registry.mlmodel import Column, Signature
from serving.runtimes.accelerated.accelerate import accelerated
from serving.runtimes.accelerated.runtime import AcceleratedRuntime
from serving.runtimes.base import Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import compile_schema
from tests.accelerating import BOTH, PATIENCE, answer, same

COLUMNS = {"age": "double", "visits": "long", "city": "string", "plan": "string"}
OPTIONAL = ("age", "plan")
SCHEMA = compile_schema(Signature(tuple(Column(n, t, n not in OPTIONAL) for n, t in COLUMNS.items()), ()))
CITIES, PLANS = ["Aachen", "Berlin", "Celle", "Dresden"], ["basic", "plus", None]
NUMBERS = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
IGNORE = OneHotEncoder(handle_unknown="ignore")


def usual(encoder: Any, numbers: Any = NUMBERS) -> Any:
    """What most pipelines begin with."""
    return make_column_transformer((numbers, ["age", "visits"]), (encoder, ["city", "plan"]))


BEFORE: dict[str, Any] = {
    "one-hot": usual(IGNORE),
    "dense": usual(OneHotEncoder(handle_unknown="ignore", sparse_output=False)),
    "sparse": make_column_transformer((NUMBERS, ["age", "visits"]), (IGNORE, ["city", "plan"]), sparse_threshold=1.0),
    "dropped": usual(OneHotEncoder(drop="first")),
    "strict": usual(OneHotEncoder()),
    "rare": usual(OneHotEncoder(handle_unknown="infrequent_if_exist", min_frequency=0.2)),
    "ordinal": usual(OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1, encoded_missing_value=-2)),
    "target": usual(TargetEncoder(random_state=0)),
    "imputed": usual(make_pipeline(SimpleImputer(missing_values=None, strategy="most_frequent"), IGNORE)),
    "as it is": make_column_transformer((IGNORE, make_column_selector(dtype_include=object)), remainder=SimpleImputer()),
    "visits": make_column_transformer((SimpleImputer(), ["age"]), (OneHotEncoder(handle_unknown="ignore"), ["visits"])),
    "visits, strictly": make_column_transformer((SimpleImputer(), ["age"]), (OrdinalEncoder(), ["visits"])),
}  # fmt: skip
MODELS: dict[str, Any] = {
    "logistic": linear_model.LogisticRegression(),
    "ridge": linear_model.Ridge(),
    "forest": ensemble.RandomForestClassifier(10, random_state=0),
    "boosting": ensemble.GradientBoostingClassifier(n_estimators=8, random_state=0),
    "network": neural_network.MLPClassifier((5,), max_iter=40, random_state=0),
}


def frame(rows: int = 200) -> tuple[pd.DataFrame, np.ndarray]:
    random = np.random.default_rng(4)
    made = pd.DataFrame({
        "age": np.where(random.random(rows) < 0.1, np.nan, random.integers(18, 90, rows)),
        "visits": random.integers(0, 5, rows),
        "city": random.choice(CITIES, rows, p=[0.4, 0.3, 0.25, 0.05]),
        "plan": random.choice(np.array(PLANS, object), rows),
    })  # fmt: skip
    score = made["visits"] + 2 * (made["city"] == "Berlin") + (made["plan"] == "plus") + random.normal(size=rows)
    return made, (score > 3).to_numpy().astype(int)


def arrays_of(rows: pd.DataFrame) -> tuple[np.ndarray, ...]:
    return tuple(rows[name].to_numpy() for name in COLUMNS)


@cache
def proved(before: str, model: str) -> tuple[SklearnRuntime, AcceleratedRuntime]:
    known, y = frame()
    native = SklearnRuntime(clone(make_pipeline(BEFORE[before], MODELS[model])).fit(known, y), SCHEMA)
    example = known[known["age"].notna() & known["plan"].notna()][:3]
    fast = accelerated(native, SCHEMA, arrays_of(example), PATIENCE)
    assert isinstance(fast, AcceleratedRuntime), native.engine.why
    return native, fast


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_pipelines_that_encode_categories_answer_as_scikit_learn_does(before: str, model: str) -> None:
    """Dense and sparse; and they compute the rows themselves."""
    native, fast = proved(before, model)
    arrays = arrays_of(frame()[0])
    assert same(answer(fast, arrays), answer(native, arrays))
    assert len(fast.prepared(arrays)) == len(arrays[0])


ROW = st.tuples(
    st.one_of(st.none(), st.floats(-1e6, 1e6)),
    st.integers(-2, 7),
    st.sampled_from([*CITIES, "Emden", ""]),
    st.sampled_from([*PLANS, "gold", ""]),
)


@settings(max_examples=120, deadline=None)
@given(
    before=st.sampled_from(sorted(BEFORE)),
    model=st.sampled_from(sorted(MODELS)),
    rows=st.lists(ROW, min_size=1, max_size=20),
)
@pytest.mark.filterwarnings("ignore")
def test_any_categories_get_the_librarys_answer(before: str, model: str, rows: list[tuple[Any, ...]]) -> None:
    """Unknown and missing ones too: the same answer, or the same error."""
    native, fast = proved(before, model)
    age, visits, city, plan = zip(*rows, strict=True)
    words = [np.array([*column, None], object)[:-1] for column in (city, plan)]
    arrays = (np.array(age, np.float64), np.array(visits, np.int64), *words)
    assert same(answer(fast, arrays), answer(native, arrays))


@pytest.mark.filterwarnings("ignore")
def test_a_search_answers_as_what_it_found() -> None:
    """Its best estimator is compiled, and columns chosen by name reach it as a frame: of numbers alone, too."""
    known, y = frame()
    search = GridSearchCV(make_pipeline(usual(IGNORE), svm.SVC()), {"svc__C": [0.5, 2.0]}, cv=2).fit(known, y)
    native = SklearnRuntime(search, SCHEMA)
    fast = accelerated(native, SCHEMA, arrays_of(known.dropna()[:2]), PATIENCE)
    assert (fast.engine.name, native.engine.why) == ("kernels", None)
    assert same(answer(fast, arrays_of(known)), answer(native, arrays_of(known)))
    doubles = compile_schema(Signature((Column("age", "double"), Column("visits", "double")), ()))
    numbers = make_pipeline(make_column_transformer((StandardScaler(), ["visits"])), linear_model.Ridge())
    plain = known[["age", "visits"]].fillna(1.0).astype(float)
    searched = SklearnRuntime(GridSearchCV(numbers, {"ridge__alpha": [1.0]}, cv=2).fit(plain, y), doubles)
    labels = searched.predict((plain.to_numpy(),), len(plain), Want.LABELS).labels
    assert np.array_equal(labels, searched.estimator.predict(plain))
    assert accelerated(searched, doubles, (plain.to_numpy()[:2],), PATIENCE).engine.name == "arrays"


def test_a_category_that_the_encoder_raises_for_is_the_librarys_error() -> None:
    """The batch goes to the library, which raises as it always did."""
    native, fast = proved("strict", "logistic")
    arrays = arrays_of(frame()[0][:2].assign(city="Emden"))
    for runtime in (native, fast):
        with pytest.raises(ValueError, match="unknown categories"):
            runtime.predict(arrays, 2, BOTH)
