"""ONNX: what its graphs answer, and which files the gate refuses."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

from registry.errors import InvalidModel
from registry.versions import ModelVersion
from serving.admission import BatchingLimits
from serving.batching import Batcher
from serving.configuration import ModelOptions
from serving.decoding import decode_instances
from serving.loading import Loaded, Loader, warm
from serving.runtimes.base import Outputs, Want
from serving.runtimes.onnx import OnnxRuntime
from serving.verdict import judge
from tests.crafted import Spot
from tests.models import Folder, columns

X = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 1.0], [4.0, 1.0]])
TWO = columns(("a", "double"), ("b", "double"))
VERSION = ModelVersion("m", "1")


def linear(inputs: tuple[str, ...] = ("x",), location: str | None = None, domain: str = "") -> onnx.ModelProto:
    """A graph that adds up its columns: one matrix of two, or one input per name. The weights may lie elsewhere."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2, 1], [1.0, 1.0])
    if location is not None:
        weights.ClearField("float_data")
        weights.data_location = TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location)
    nodes = [helper.make_node("MatMul", [inputs[0] if len(inputs) == 1 else "x", "w"], ["y"], domain=domain)]
    if len(inputs) > 1:
        nodes.insert(0, helper.make_node("Concat", list(inputs), ["x"], axis=1))
    width = 2 // len(inputs)
    graph = helper.make_graph(
        nodes, "sums", [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])], [weights],
    )  # fmt: skip
    opsets = [helper.make_opsetid(name, 17) for name in {"", domain}]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def save(spot: Spot, model: onnx.ModelProto, signature: ModelSignature = TWO, **how: Any) -> None:
    mlflow.onnx.save_model(model, str(spot.model), signature=signature, pip_requirements=["onnx"], **how)


def overwrite(spot: Spot, model: onnx.ModelProto) -> None:
    (spot.model / "model.onnx").write_bytes(model.SerializeToString())


def load(path: Path) -> Loaded:
    loaded = Loader(Folder(path), ModelOptions(), None).load(VERSION)
    warm(loaded)
    assert isinstance(loaded.runtime, OnnxRuntime)
    return loaded


def ask(loaded: Loaded, rows: list[Any]) -> Outputs:
    arrays = decode_instances(loaded.schema, rows, frozenset()).arrays
    assert arrays is not None
    return loaded.runtime.predict(arrays, len(rows), Want.LABELS | Want.PROBABILITIES)


def classifier(**how: Any) -> Any:
    fitted = LogisticRegression().fit(X, np.array(["fine", "fine", "worn", "worn"]))
    return fitted, to_onnx(fitted, X.astype(np.float32), **how)


@pytest.mark.parametrize("inputs", [("x",), ("a", "b")])
def test_columns_go_in_as_a_matrix_or_each_by_its_name(spot: Spot, inputs: tuple[str, ...]) -> None:
    """In the order of the signature, as the graph's own type."""
    save(spot, linear(inputs))
    labels = ask(load(spot.model), [[1.0, 2.0], [3.0, 4.0]]).labels
    assert labels is not None
    assert labels.tolist() == [3.0, 7.0]


def test_tensors_go_in_by_name(spot: Spot) -> None:
    """A tensor signature needs no columns."""
    save(spot, linear(), ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 2), "x")])))
    labels = ask(load(spot.model), [[1.0, 2.0]]).labels
    assert labels is not None
    assert labels.tolist() == [3.0]


@pytest.mark.parametrize("zipmap", [True, False])
def test_a_converted_classifier_answers_what_scikit_learn_answers(spot: Spot, zipmap: bool) -> None:
    """Labels, and probabilities from a mapping per row or from a matrix."""
    fitted, graph = classifier(options={"zipmap": zipmap})
    save(spot, graph, columns(("a", "double"), ("b", "double"), output="string"))
    loaded = load(spot.model)
    outputs = ask(loaded, X.tolist())
    assert outputs.labels is not None
    assert outputs.probabilities is not None
    assert outputs.labels.tolist() == fitted.predict(X).tolist()
    np.testing.assert_allclose(outputs.probabilities, fitted.predict_proba(X), atol=1e-5)
    assert loaded.runtime.classes is not None
    assert loaded.runtime.classes.tolist() == (["fine", "worn"] if zipmap else [0, 1])


def test_data_beside_the_graph_is_loaded(spot: Spot) -> None:
    """Large models are saved in two files."""
    save(spot, linear(), save_as_external_data=True, size_threshold=0)
    labels = ask(load(spot.model), [[1.0, 2.0]]).labels
    assert labels is not None
    assert labels.tolist() == [3.0]


@pytest.mark.parametrize("place", ["../secret", "/etc/hostname", "missing.data"])
def test_data_outside_of_the_version_is_refused(spot: Spot, place: str) -> None:
    """Whatever the graph names, only the version's own files are read."""
    (spot.model.parent / "secret").write_bytes(np.ones(2, dtype=np.float32).tobytes())
    save(spot, linear())
    overwrite(spot, linear(location=place))
    assert reasons(spot) == ("the onnx file names data that is not in the version's folder",)
    with pytest.raises(InvalidModel, match="names data"):
        load(spot.model)


def test_data_that_a_subgraph_names_is_refused_too(spot: Spot) -> None:
    """Tensors hide in attributes of nodes, and in graphs in them."""
    save(spot, linear())
    inner = linear(location="/etc/hostname").graph
    outer = linear()
    outer.graph.node[0].attribute.append(helper.make_attribute("body", inner))
    overwrite(spot, outer)
    assert len(reasons(spot)) == 1


def test_what_is_no_graph_is_refused(spot: Spot) -> None:
    """By the parser, before onnxruntime sees it."""
    save(spot, linear())
    (spot.model / "model.onnx").write_bytes(b"\xff" * 100)
    assert re.match(r"the onnx file cannot be read \(\w+\)", reasons(spot)[0])


def test_operators_of_a_library_are_not_found(spot: Spot) -> None:
    """None is ever loaded, so that such a version FAILED says what it wanted."""
    save(spot, linear())
    overwrite(spot, linear(domain="planted.library"))
    with pytest.raises(Exception, match=r"planted\.library"):
        load(spot.model)


def test_a_graph_that_is_not_the_signatures_is_refused(spot: Spot) -> None:
    """Before the first request."""
    save(spot, linear(("a", "c")))
    with pytest.raises(InvalidModel, match="not those of the signature"):
        load(spot.model)


async def test_batches_run_at_once(spot: Spot) -> None:
    """One session in four threads: every long request gets its own rows, in order."""
    save(spot, linear())
    loaded = load(spot.model)
    assert loaded.runtime.engine.parallel
    limits = BatchingLimits(max_rows=8, concurrency=4)
    batcher = Batcher(loaded.runtime, limits, 10.0, lambda *_: None)
    blocks = [np.column_stack([np.full(100, float(i)), np.arange(100.0)]) for i in range(10)]
    heard = await asyncio.gather(*(batcher.predict((block,), 100, Want.LABELS, None) for block in blocks))
    for block, (outputs, _) in zip(blocks, heard, strict=True):
        assert outputs.labels is not None
        assert outputs.labels.tolist() == block.sum(axis=1).tolist()
    batcher.close()


def reasons(spot: Spot) -> tuple[str, ...]:
    return judge(VERSION, Folder(spot.model), ModelOptions()).reasons
