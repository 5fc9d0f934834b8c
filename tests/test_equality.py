"""The same rows get the same answer, whatever carries them: every protocol, both lanes, one worker or two, a cache or
none, and every engine.

Within one engine the bodies are the same to the byte and the numbers of all protocols to the bit. Between the library and
what it is accelerated with, labels are identical and numbers within a millionth.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests.forms import FORMS, Client, Heard, Rows, forms_of
from tests.models import REQUIREMENTS
from tests.servers import Server

pytestmark = pytest.mark.e2e
#: The ways through the server that an answer must not depend on: environment by name. Another one is another line.
SERVERS = {
    "protocol": {"HEADWAY_SERVER__LANE": "protocol"},
    "asgi": {"HEADWAY_SERVER__LANE": "asgi"},
    "workers": {"HEADWAY_SERVER__WORKERS": "2"},
}
#: What one model may be set to, beside each other on every server.
STATES = list(product(("auto", "off"), (0, 2**20)))

MIXED = {"size": "double", "weight": "float", "age": "long", "visits": "integer", "city": "string"}
DOUBLES = dict.fromkeys(["a", "b", "c", "d"], "double")
FLOATS = dict.fromkeys(["x", "y", "z"], "float")
CITIES = ["Aachen", "Berlin", "Celle"]
ENGINES = {"mixed": "arrays", "forest": "onnxruntime", "tensor": "arrays"}

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "double": st.floats(-1e6, 1e6) | st.integers(-9, 9).map(float),
    "float": st.floats(-1e6, 1e6, width=32),
    "long": st.integers(-(2**40), 2**40),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "string": st.sampled_from(CITIES) | st.text(max_size=6),
}
OPTIONAL = ("size", "city")


def rows_of(columns: dict[str, str], tensor: str | None = None) -> st.SearchStrategy[Rows]:
    """Up to more rows than one call of the model takes."""
    value = [VALUES[k] | st.none() if name in OPTIONAL else VALUES[k] for name, k in columns.items()]
    rows = st.lists(st.tuples(*value), min_size=1, max_size=40)
    return rows.map(lambda values: Rows(columns, values, tensor))


QUESTIONS = st.one_of(
    st.tuples(st.just("mixed"), rows_of(MIXED)),
    st.tuples(st.just("forest"), rows_of(DOUBLES)),
    st.tuples(st.just("tensor"), rows_of(FLOATS, "float")),
)


def models() -> dict[str, tuple[Any, ModelSignature]]:
    """A classifier of all types with string labels, a forest of three classes, a regression of two targets on a tensor."""
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 4))
    mixed = pd.DataFrame({
        "size": x[:, 0] * 10, "weight": x[:, 1].astype(np.float32), "age": random.integers(18, 90, 300),
        "visits": random.integers(0, 9, 300).astype(np.int32), "city": random.choice(CITIES, 300),
    })  # fmt: skip
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    before = make_column_transformer(
        (numbers, ["size", "weight", "age", "visits"]), (OneHotEncoder(handle_unknown="ignore"), ["city"])
    )
    labels = np.where((mixed["city"] == "Berlin") ^ (x[:, 0] > 0), "worn", "fine")
    ridge = make_pipeline(StandardScaler(), Ridge()).fit(x[:, :3].astype(np.float32), x[:, 2:])
    return {
        "mixed": (make_pipeline(before, LogisticRegression()).fit(mixed, labels), _signature(MIXED)),
        "forest": (
            RandomForestClassifier(6, max_depth=4, random_state=0).fit(x, np.digitize(x[:, 0], [-0.5, 0.5])),
            _signature(DOUBLES),
        ),
        "tensor": (ridge, ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 3))]))),
    }


def _signature(columns: dict[str, str]) -> ModelSignature:
    return ModelSignature(
        Schema([ColSpec(kind, name, required=name not in OPTIONAL) for name, kind in columns.items()])
    )


@pytest.fixture(scope="module")
def clients(serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """A client of each server, which serves every model in every state."""
    home = tmp_path_factory.mktemp("equality")
    entries = []
    for kind, (model, signature) in models().items():
        mlflow.sklearn.save_model(
            model, home / kind, serialization_format="skops", signature=signature, pip_requirements=REQUIREMENTS,
            skops_trusted_types=["sklearn.tree._tree.Tree", "numpy.dtype"],
        )  # fmt: skip
        entries += [
            {"name": f"{kind}-{i}", "uri": str(home / kind), "accelerate": accelerate, "timeout_ms": 0,
             "response_cache": {"max_bytes": cache}}
            for i, (accelerate, cache) in enumerate(STATES)
        ]  # fmt: skip
    (home / "headway.yaml").write_text(json.dumps({"models": entries}))

    with ThreadPoolExecutor() as pool:
        starting = {
            name: pool.submit(serve, "--config", str(home / "headway.yaml"), **said) for name, said in SERVERS.items()
        }
    servers = {name: started.result() for name, started in starting.items()}
    for server in servers.values():
        server.until_ready()
        for kind, engine in ENGINES.items():
            engines = [server.status(f"{kind}-{i}")["engine"] for i in range(len(STATES))]
            assert engines == [engine, engine, "scikit-learn", "scikit-learn"]
    talking = {name: Client(server) for name, server in servers.items()}
    yield talking
    for client in talking.values():
        client.close()


def heard_in(clients: dict[str, Client], kind: str, rows: Rows, accelerate: str) -> dict[str, Heard]:
    """What one engine answers in each form: the same on every server, computed or kept."""
    answers: dict[str, list[Heard]] = {form: [] for form in forms_of(rows)}
    for client, (i, (engine, cache)) in product(clients.values(), enumerate(STATES)):
        if engine == accelerate:
            heard = {form: [FORMS[form](client, f"{kind}-{i}", rows) for _ in range(2)] for form in answers}
            outcomes = {one.cache for form in answers for one in heard[form] if not form.startswith("grpc")}
            assert "hit" in outcomes if cache else outcomes == {None}
            for form in answers:
                answers[form] += heard[form]
    for form, every in answers.items():
        assert {heard.body for heard in every} == {every[0].body}, form
    return {form: every[0] for form, every in answers.items()}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(question=QUESTIONS)
def test_the_same_rows_get_the_same_answer_whatever_carries_them(
    clients: dict[str, Client], question: tuple[str, Rows]
) -> None:
    """Types and shapes by chance, missing values and unknown categories among them."""
    kind, rows = question
    first, *others = [heard for a in ("auto", "off") for heard in heard_in(clients, kind, rows, a).values()]
    same_engine = len(forms_of(rows)) - 1
    for i, other in enumerate(others):
        assert other.arrays.keys() == first.arrays.keys()
        for name, array in first.arrays.items():
            near = 0.0 if i < same_engine else 1e-6
            _equal(other.arrays[name], array, near)


def _equal(found: np.ndarray, expected: np.ndarray, near: float) -> None:
    """Words and whole numbers are identical; other numbers as near as that."""
    assert found.shape == expected.shape
    if expected.dtype.kind == "f":
        kind = min(found.dtype, expected.dtype)  # V1 has no types: the shortest decimals of a float are that float's
        np.testing.assert_allclose(found.astype(kind), expected.astype(kind), rtol=near, atol=near)
    else:
        assert [_word(v) for v in found.tolist()] == [_word(v) for v in expected.tolist()]


def _word(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value


WRONG: dict[str, Any] = {
    "nothing": [],
    "too narrow": [[1.0]],
    "a word for a number": [["one", 1.0, 1, 1, "Berlin"]],
    "a number for a word": [[1.0, 1.0, 1, 1, 7]],
    "a fraction for a whole number": [[1.0, 1.0, 1.5, 1, "Berlin"]],
    "too large": [[1.0, 1.0, 1, 2**31, "Berlin"]],
    "a missing value": [[1.0, None, 1, 1, "Berlin"]],
    "an unknown column": [{"colour": 1}],
    "lists and objects": [[1.0, 1.0, 1, 1, "Berlin"], {"size": 1.0}],
}


@pytest.mark.parametrize("instances", WRONG.values(), ids=WRONG.keys())
def test_what_is_wrong_is_wrong_in_the_same_words(clients: dict[str, Client], instances: Any) -> None:
    """On every server, in every state: a 400, and the same body."""
    body = json.dumps({"instances": instances}).encode()
    found = [
        client.post(f"/v1/models/mixed-{i}:predict", body) for client in clients.values() for i in range(len(STATES))
    ]
    assert {(answer.status_code, answer.content) for answer in found} == {(400, found[0].content)}
