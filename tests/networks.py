"""Small networks with several outputs, saved as versions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from onnx import TensorProto, helper

FLOAT = np.dtype("float32")
#: What `graph` answers, by its own names: the datatype and the shape of a row.
OUTPUTS = {"scores": ("FP32", [3]), "total": ("FP32", [1]), "best": ("INT64", [])}
WEIGHTS = np.array([[1.0, -2.0, 0.5], [0.25, 1.0, -1.0]], np.float32)


def answers(rows: list[list[float]]) -> dict[str, np.ndarray]:
    """What `graph` answers, by NumPy."""
    scores = np.array(rows, np.float32) @ WEIGHTS
    return {"scores": scores, "total": scores.sum(axis=1, keepdims=True), "best": scores.argmax(axis=1)}


def signature(*outputs: str | None, width: int = 2) -> ModelSignature:
    """One tensor `x` of `[-1, 2]`, and outputs of these names."""
    specs = [TensorSpec(FLOAT, (-1, -1), name) for name in outputs]
    return ModelSignature(Schema([TensorSpec(FLOAT, (-1, width), "x")]), Schema(specs) if specs else None)


def graph(*names: str, width: int | str = 2) -> onnx.ModelProto:
    """A graph with the outputs of these names, all of OUTPUTS if none is given; `state` has no row per row. It takes rows of
    two, whether or not its `width` says so."""
    types = {
        "scores": TensorProto.FLOAT,
        "total": TensorProto.FLOAT,
        "best": TensorProto.INT64,
        "state": TensorProto.FLOAT,
    }
    shapes = {"scores": ["n", 3], "total": ["n", 1], "best": ["n"], "state": [1, "n", 3]}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"]),
        helper.make_node("ReduceSum", ["scores", "axis"], ["total"], keepdims=1),
        helper.make_node("ArgMax", ["scores"], ["best"], axis=1, keepdims=0),
        helper.make_node("Unsqueeze", ["scores", "front"], ["state"]),
    ]
    constants = [
        helper.make_tensor("w", TensorProto.FLOAT, [2, 3], WEIGHTS.ravel().tolist()),
        helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
        helper.make_tensor("front", TensorProto.INT64, [1], [0]),
    ]
    outputs = [helper.make_tensor_value_info(name, types[name], shapes[name]) for name in names or OUTPUTS]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])]
    whole = helper.make_graph(nodes, "several", inputs, outputs, constants)
    return helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def save_graph(path: Path, model: onnx.ModelProto, signed: ModelSignature, **how: Any) -> Path:
    """A version of the onnx flavour."""
    mlflow.onnx.save_model(model, str(path), signature=signed, pip_requirements=["onnx"], **how)
    return path


def save_network(path: Path, network: Any, signed: ModelSignature, *, pickled: bool = False) -> Path:
    """A version of the pytorch flavour, exported unless it is to be pickled."""
    form: dict[str, Any] = {"serialization_format": "pickle"} if pickled else {"input_example": np.ones((2, 2), FLOAT)}
    mlflow.pytorch.save_model(network, str(path), signature=signed, pip_requirements=["mlflow"], **form)
    return path
