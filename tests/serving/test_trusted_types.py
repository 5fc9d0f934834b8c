"""The list of types that a skops file may hold: all of scikit-learn's own, and only what is inert."""

import importlib
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skops.io
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest, mutual_info_classif
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct, Matern, WhiteKernel
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge, TweedieRegressor
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils import all_estimators

from serving.estimators.file import load_skops, skops_reasons
from serving.trusted_types import TRUSTED_SKOPS
from tests.serving.hostile import save

RNG = np.random.default_rng(0)
X = RNG.random((60, 3))
LABELS, NUMBERS = (X[:, 0] > 0.5).astype(int), X[:, 1] + 1
TARGETS: list[tuple[Any, Any]] = [(X, LABELS), (X, NUMBERS), (X, np.c_[LABELS, 1 - LABELS]), (NUMBERS, NUMBERS),
                                  (["one two", "two three"], None)]  # fmt: skip
FOREIGN = {"SplineTransformer"}  # it holds SciPy's own splines


def fitted() -> Iterator[tuple[str, Any]]:
    """A fitted instance of every estimator that needs no arguments and fits some easy data."""
    for name, cls in all_estimators():
        for x, y in TARGETS:
            try:
                yield name, cls().fit(x, y)
                break
            except Exception:
                continue


VARIANTS = [
    GridSearchCV(Ridge(), {"alpha": [1, 2]}, cv=TimeSeriesSplit(2)),
    GridSearchCV(LogisticRegression(), {"C": [1, 2]}, scoring="roc_auc"),
    KNeighborsClassifier(metric="manhattan", algorithm="ball_tree"),
    KNeighborsClassifier(metric="chebyshev", algorithm="kd_tree"),
    GaussianProcessRegressor(WhiteKernel() + DotProduct() * Matern()),
    HistGradientBoostingClassifier(max_iter=2, categorical_features=[0]),
    GradientBoostingClassifier(n_estimators=2, loss="exponential"),
    TweedieRegressor(power=1.5),
    CalibratedClassifierCV(LogisticRegression(), method="isotonic"),
    make_pipeline(SelectKBest(mutual_info_classif, k=1), LogisticRegression()),
    make_pipeline(FunctionTransformer(np.log1p), RandomForestClassifier(2)),
    make_pipeline(
        ColumnTransformer([("scaled", make_pipeline(SimpleImputer(), StandardScaler()), [1]),
                           ("coded", OneHotEncoder(handle_unknown="ignore"), [0])], remainder="passthrough"),
        LogisticRegression(),
    ),
]  # fmt: skip


def foreign_types(model: Any) -> set[str]:
    return set(skops.io.get_untrusted_types(data=skops.io.dumps(model))) - TRUSTED_SKOPS


@pytest.mark.filterwarnings("ignore")
def test_every_estimator_of_scikit_learn_loads_with_the_servers_list(tmp_path: Path) -> None:
    """Fitted with its defaults, and fitted in ways that bring other types of scikit-learn with them."""
    seen = set()
    for name, model in fitted():
        if name in {"Birch"}:  # skops cannot write it
            continue
        if name in FOREIGN:
            assert all(kind.startswith("scipy.") for kind in foreign_types(model))
            continue
        assert list(skops_reasons(save(model, tmp_path / "model.skops"))) == [], name
        seen.add(name)
    assert len(seen) > 140
    assert {"RandomForestClassifier", "HistGradientBoostingRegressor", "SimpleImputer"} <= seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", VARIANTS, ids=lambda m: type(m).__name__)
def test_an_estimator_with_parts_loads_with_the_servers_list(model: Any, tmp_path: Path) -> None:
    """Searches, kernels, metrics, selectors and pipelines."""
    rows = np.c_[LABELS, X]
    fitted_model = model.fit(rows, LABELS)
    loaded = load_skops(save(fitted_model, tmp_path / "model.skops"))
    assert np.array_equal(loaded.predict(rows), fitted_model.predict(rows))


def test_text_and_every_scorer_load_with_the_servers_list() -> None:
    """Vectorizers hold no foreign type, and a search may have been scored by any name."""
    words = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["aa bb", "bb cc"] * 2, [0, 1] * 2)
    assert foreign_types(words) == set()
    assert [name for name in get_scorer_names() if foreign_types(get_scorer(name))] == []


def test_the_list_names_only_what_exists_and_only_what_is_inert() -> None:
    """scikit-learn's own, and six types of others that hold or name plain numbers."""
    for name in TRUSTED_SKOPS:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    others = {name for name in TRUSTED_SKOPS if not name.startswith("sklearn.")}
    assert others == {"functools.partial", "numpy.dtype", "numpy.mean", "numpy.number",
                      "scipy.sparse._csc.csc_matrix", "scipy.sparse._csr.csr_matrix"}  # fmt: skip


def test_a_partial_is_trusted_only_with_its_function() -> None:
    """`functools.partial` opens no door: what it would call must be trusted itself."""
    model = FunctionTransformer(partial(subprocess.check_call, ["true"]))
    assert foreign_types(model) == {"subprocess.check_call"}
