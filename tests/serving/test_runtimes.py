"""What a loaded version answers, in every output mode: labels, probabilities, raw."""

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from registry.errors import InvalidModel
from registry.mlmodel import Column, Signature
from registry.versions import ModelVersion
from serving.calls import Answer
from serving.configuration import ModelOptions
from serving.decoding import decode_instances
from serving.errors import BadRequest
from serving.flight import wanted
from serving.loading import Loaded, Loader, warm
from serving.runtimes.base import Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import compile_schema
from serving.transport.v1 import to_document
from serving.transport.v2 import check_outputs, output_tensors
from tests.models import Folder, columns, linear

X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
Y = np.array([0, 0, 1, 1])
ROWS = [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
AB = columns(("a", "double"), ("b", "double"))
VERSION = ModelVersion("m", "3")


def load(path: Path, **tags: str) -> Loaded:
    version = ModelVersion("m", "3", configuration=tuple((f"headway.{k}", v) for k, v in tags.items()))
    loaded = Loader(Folder(path), ModelOptions(allow_code=True, isolation="none"), None).load(version)
    warm(loaded)
    return loaded


def sklearn(path: Path, model: Any, signature: ModelSignature = AB, **more: Any) -> Path:
    mlflow.sklearn.save_model(model, str(path / "model"), serialization_format="cloudpickle", signature=signature,
                              pip_requirements=["mlflow"], **more)  # fmt: skip
    return path / "model"


def ask(loaded: Loaded, rows: list[Any], output: str = "auto", per_instance: bool = False) -> dict[str, Any]:
    """The V1 answer, as a client would read it."""
    arrays = decode_instances(loaded.schema, rows, frozenset()).arrays
    assert arrays is not None
    outputs = loaded.runtime.predict(arrays, len(rows), wanted(output, loaded))
    assert outputs.consistent()
    body = to_document(Answer("m", VERSION, loaded, outputs, output, per_instance))
    assert (body.pop("model_name"), body.pop("model_version")) == ("m", "3")
    return {k: np.asarray(v).tolist() if isinstance(v, np.ndarray) else v for k, v in body.items()}


# -- scikit-learn -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [[0, 1], ["fine", "worn"], [False, True], [7, 3]])
def test_a_classifier_answers_labels_and_probabilities(tmp_path: Path, classes: list[Any]) -> None:
    """Labels are the model's own, whatever their type, and the columns of the probabilities follow its classes."""
    model = DecisionTreeClassifier().fit(X, np.array(classes)[Y])
    loaded = load(sklearn(tmp_path, model))
    expected = [classes[0], classes[1], classes[1]]
    probabilities = [[float(label == c) for c in sorted(classes)] for label in expected]
    assert ask(loaded, ROWS) == {"predictions": expected, "probabilities": probabilities}
    assert ask(loaded, ROWS, "labels") == {"predictions": expected}
    assert ask(loaded, ROWS, "probabilities") == {"predictions": probabilities}
    assert ask(loaded, ROWS, "raw") == {"predictions": expected}


def test_per_instance_makes_every_prediction_an_object(tmp_path: Path) -> None:
    """With its probabilities beside it where there are any."""
    loaded = load(sklearn(tmp_path, DecisionTreeClassifier().fit(X, Y)))
    rows = ask(loaded, ROWS, per_instance=True)
    assert rows == {
        "predictions": [{"prediction": 0, "probabilities": [1.0, 0.0]}]
        + [{"prediction": 1, "probabilities": [0.0, 1.0]}] * 2
    }
    assert ask(loaded, ROWS[:1], "labels", per_instance=True) == {"predictions": [{"prediction": 0}]}


def test_a_regressor_has_numbers_only(tmp_path: Path) -> None:
    """No probabilities under `auto`, and a 400 where they are asked for."""
    loaded = load(sklearn(tmp_path, linear(1.0, 2.0)))
    assert ask(loaded, ROWS) == {"predictions": [2.0, 1.0, 3.0]}
    assert ask(loaded, ROWS, "raw") == ask(loaded, ROWS, "labels") == {"predictions": [2.0, 1.0, 3.0]}
    with pytest.raises(BadRequest, match="no probabilities"):
        ask(loaded, ROWS, "probabilities")
    with pytest.raises(BadRequest, match="no output 'probabilities'"):
        check_outputs(["probabilities"], loaded, None)


def test_a_classifier_without_probabilities_answers_labels(tmp_path: Path) -> None:
    """A support vector machine has only a margin."""
    loaded = load(sklearn(tmp_path, LinearSVC().fit(X, Y)))
    assert ask(loaded, ROWS) == {"predictions": [0, 1, 1]}
    with pytest.raises(BadRequest, match="no probabilities"):
        ask(loaded, ROWS, "probabilities")


def test_several_targets_are_rows_of_rows(tmp_path: Path) -> None:
    """A regressor of two targets, and a classifier of two, whose probabilities are no one table."""
    both = np.c_[Y, 1 - Y]
    assert ask(load(sklearn(tmp_path / "r", DecisionTreeRegressor().fit(X, both))), ROWS) == {
        "predictions": [[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]
    }
    loaded = load(sklearn(tmp_path / "c", DecisionTreeClassifier().fit(X, both)))
    assert ask(loaded, ROWS) == {"predictions": [[0, 1], [1, 0], [1, 0]]}
    with pytest.raises(BadRequest, match="no probabilities"):
        ask(loaded, ROWS, "probabilities")


def test_raw_is_what_mlflows_pyfunc_returns(tmp_path: Path) -> None:
    """A model logged with `predict_proba` as its function gives probabilities there, and labels as predictions."""
    model = DecisionTreeClassifier().fit(X, Y)
    loaded = load(sklearn(tmp_path, model, pyfunc_predict_fn="predict_proba"))
    assert ask(loaded, ROWS, "raw")["predictions"] == model.predict_proba(np.array(ROWS)).tolist()
    assert ask(loaded, ROWS, "labels")["predictions"] == [0, 1, 1]


def test_columns_of_any_type_reach_a_pipeline_by_name(tmp_path: Path) -> None:
    """Strings, and integers beside doubles, in the order of the signature."""
    import pandas as pd

    frame = pd.DataFrame({"kind": ["press", "pump"] * 2, "load": [0.1, 0.2, 0.9, 0.8], "age": [1, 2, 3, 4]})
    encode = make_column_transformer((OneHotEncoder(), ["kind"]), remainder="passthrough")
    model = make_pipeline(encode, LogisticRegression()).fit(frame, Y)
    signature = columns(("kind", "string"), ("load", "double"), ("age", "long"))
    loaded = load(sklearn(tmp_path, model, signature, input_example=frame[:1]))
    rows = [{"age": 4, "kind": "pump", "load": 0.8}, {"load": 0.1, "age": 1, "kind": "press"}]
    assert ask(loaded, rows)["predictions"] == model.predict(pd.DataFrame(rows)[list(frame)]).tolist()
    assert ask(loaded, [["pump", 0.8, 4], ["press", 0.1, 1]]) == ask(loaded, rows)


@pytest.mark.parametrize("kind", ["double", "float", "long", "integer"])
@pytest.mark.parametrize("by_name", [False, True])
def test_one_column_is_enough(kind: str, by_name: bool) -> None:
    """Of any numeric type, for an estimator that takes a matrix and for one that chooses columns by name."""
    import pandas as pd

    model = LogisticRegression()
    if by_name:
        model = make_pipeline(make_column_transformer(("passthrough", ["a"])), model)
    x = np.array([[0], [1], [2], [3]])
    model.fit(pd.DataFrame(x, columns=["a"]) if by_name else x, Y)
    schema = compile_schema(Signature((Column("a", kind),), ()))
    arrays = decode_instances(schema, x.tolist(), frozenset()).arrays
    assert arrays is not None
    labels = SklearnRuntime(model, schema).predict(arrays, 4, Want.LABELS).labels
    assert labels is not None
    assert labels.tolist() == Y.tolist()


def test_v2_outputs_have_the_datatype_of_the_labels(tmp_path: Path) -> None:
    """And probabilities are FP64, whatever the model computes in."""
    for labels, kind in (([0, 1], "i"), (["a", "b"], "U")):
        loaded = load(sklearn(tmp_path / kind, DecisionTreeClassifier().fit(X, np.array(labels)[Y])))
        arrays = decode_instances(loaded.schema, ROWS, frozenset()).arrays
        assert arrays is not None
        outputs = loaded.runtime.predict(arrays, 3, wanted("auto", loaded))
        named = dict(output_tensors(Answer("m", VERSION, loaded, outputs, "auto", False), ()))
        assert (named["predictions"].dtype.kind, named["probabilities"].dtype) == (kind, np.float64)
        assert [o["datatype"] for o in loaded.outputs] == ["INT64" if kind == "i" else "BYTES", "FP64"]
        assert [o["shape"] for o in loaded.outputs] == [[-1], [-1, 2]]


# -- what tags say of networks and of pyfunc models ---------------------------------------------------------------


def network(path: Path, weights: list[list[float]]) -> Path:
    """An exported linear network with these weights and no bias."""
    torch = pytest.importorskip("torch")
    layer = torch.nn.Linear(2, len(weights), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weights))
    kind = np.dtype("float32")
    signature = ModelSignature(Schema([TensorSpec(kind, (-1, 2))]), Schema([TensorSpec(kind, (-1, len(weights)))]))
    mlflow.pytorch.save_model(layer, str(path / "model"), signature=signature, pip_requirements=["mlflow"],
                              input_example=np.ones((2, 2), dtype=np.float32))  # fmt: skip
    return path / "model"


def python_model(path: Path, weights: list[list[float]]) -> Path:
    """The same as a function of a frame."""
    matrix = np.array(weights)

    class Linear(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
            return model_input.to_numpy() @ matrix.T

    mlflow.pyfunc.save_model(str(path / "model"), python_model=Linear(), signature=AB, pip_requirements=["mlflow"])
    return path / "model"


BOTH = pytest.mark.parametrize("make", [network, python_model])
ONE, TWO = [[2.0, -1.0]], [[1.0, 0.0], [0.0, 3.0]]


def near(found: Any, expected: Any) -> bool:
    return np.shape(found) == np.shape(expected) and bool(np.allclose(found, expected, atol=1e-6))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_without_a_tag_the_raw_output_is_the_prediction(tmp_path: Path, make: Any) -> None:
    """Regression; a version without classes has no probabilities."""
    loaded = load(make(tmp_path, TWO))
    assert near(ask(loaded, ROWS)["predictions"], np.array(ROWS) @ np.array(TWO).T)
    assert set(ask(loaded, ROWS)) == {"predictions"}
    with pytest.raises(BadRequest):
        ask(loaded, ROWS, "probabilities")


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_one_sigmoid_column_is_a_binary_classifier(tmp_path: Path, make: Any) -> None:
    """It gives (1-p, p); the classes are 0 and 1, or what the tag names."""
    p = sigmoid(np.array(ROWS) @ np.array(ONE[0]))
    path = make(tmp_path, ONE)
    plain = ask(load(path, task="classification", activation="sigmoid"), ROWS)
    assert plain["predictions"] == [0, 1, 1]
    assert near(plain["probabilities"], np.c_[1 - p, p])
    named = load(path, task="classification", activation="sigmoid", classes=json.dumps(["fine", "worn"]))
    assert ask(named, ROWS)["predictions"] == ["fine", "worn", "worn"]
    assert near(ask(named, ROWS, "probabilities")["predictions"], np.c_[1 - p, p])
    assert near(np.ravel(ask(named, ROWS, "raw")["predictions"]), np.array(ROWS) @ np.array(ONE[0]))
    assert ask(named, ROWS, "labels") == {"predictions": ["fine", "worn", "worn"]}


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_softmax_columns_are_classes(tmp_path: Path, make: Any) -> None:
    """In the order of the tag; without one, 0 to k-1."""
    scores = np.array(ROWS) @ np.array(TWO).T
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    loaded = load(make(tmp_path, TWO), task="classification", activation="softmax")
    assert near(ask(loaded, ROWS)["probabilities"], expected)
    assert ask(loaded, ROWS)["predictions"] == [1, 0, 1]
    assert near(ask(loaded, ROWS, "raw")["predictions"], scores)


@BOTH
@pytest.mark.audit("4")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("names", [["low", "mid", "high"], ["a", "b", "c", "d", "e"]])
def test_the_tag_names_as_many_classes_as_the_network_has(tmp_path: Path, make: Any, names: list[str]) -> None:
    """Two, or any other number, from the first answer on."""
    weights = np.random.default_rng(0).normal(size=(len(names), 2)).round(2).tolist()
    loaded = load(make(tmp_path, weights), task="classification", activation="softmax", classes=json.dumps(names))
    scores = np.array(ROWS) @ np.array(weights).T
    answer = ask(loaded, ROWS)
    assert answer["predictions"] == [names[i] for i in scores.argmax(axis=1)]
    assert np.shape(answer["probabilities"]) == scores.shape
    assert [o["shape"] for o in loaded.outputs] == [[-1], [-1, len(names)]]


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_large_scores_do_not_overflow(tmp_path: Path, make: Any) -> None:
    """A probability is 0 or 1 then, never NaN."""
    for activation, weights in (("softmax", [[1e4, 0.0], [0.0, 1e4]]), ("sigmoid", [[1e4, -1e4]])):
        loaded = load(make(tmp_path / activation, weights), task="classification", activation=activation)
        assert near(
            ask(loaded, [[1.0, 0.0], [0.0, 1.0]])["probabilities"], np.eye(2)[:: 1 if activation == "softmax" else -1]
        )


@BOTH
@pytest.mark.filterwarnings("ignore")
def test_classes_that_are_not_as_many_as_the_columns_fail_the_version(tmp_path: Path, make: Any) -> None:
    """At warm-up, not at the first request."""
    with pytest.raises(InvalidModel, match=r"headway\.classes names 3 classes, the model has 2"):
        load(make(tmp_path, TWO), task="classification", classes='["a", "b", "c"]')
