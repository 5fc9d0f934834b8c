"""Sums over trees by ONNX Runtime: the operator `TreeEnsemble` of ai.onnx.ml 5, whose thresholds may be doubles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from serving.runtimes.accelerated.program import Tree

_NO_TRANSFORM = _LESS_OR_EQUAL = 0
_AGGREGATE_SUM = 1


def tree_session(
    planted: Sequence[tuple[Tree, int]], targets: int, features: int
) -> Callable[[np.ndarray], np.ndarray]:
    """From `[n, features]` doubles to the sums `[n, targets]`; every tree adds the value of a leaf to its target.

    One thread: the caller has one, and a sum that is split would be rounded in another order. Raises what ONNX Runtime raises.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        _graph(planted, targets, features), options, providers=["CPUExecutionProvider"]
    )

    def sums(x: np.ndarray) -> np.ndarray:
        answer: np.ndarray = session.run(None, {"x": x})[0]
        return answer

    return sums


def _graph(planted: Sequence[tuple[Tree, int]], targets: int, features: int) -> bytes:
    node = helper.make_node(
        "TreeEnsemble", ["x"], ["sums"], domain="ai.onnx.ml", aggregate_function=_AGGREGATE_SUM,
        n_targets=targets, post_transform=_NO_TRANSFORM, **_attributes(planted),
    )  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [None, features])
    sums = helper.make_tensor_value_info("sums", TensorProto.DOUBLE, [None, targets])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 5)]
    model = helper.make_model(helper.make_graph([node], "trees", [x], [sums]), opset_imports=opsets, ir_version=10)
    return bytes(model.SerializeToString())


def _attributes(planted: Sequence[tuple[Tree, int]]) -> dict[str, Any]:
    """All trees in one list of inner nodes and one of leaves, each tree's children counted from its own beginning."""
    pieces: dict[str, list[np.ndarray]] = {}
    roots, nodes, leaves = [], 0, 0
    for grown, target in planted:
        roots.append(nodes)
        for name, array in _pieces(grown, target, nodes, leaves).items():
            pieces.setdefault(name, []).append(array)
        nodes, leaves = nodes + len(pieces["nodes_featureids"][-1]), leaves + len(pieces["leaf_weights"][-1])
    whole = {name: np.concatenate(parts) for name, parts in pieces.items()}
    tensors: dict[str, np.ndarray] = {
        "leaf_weights": whole.pop("leaf_weights").astype(np.float64),
        "nodes_splits": whole.pop("nodes_splits").astype(np.float64),
        "nodes_modes": np.full(nodes, _LESS_OR_EQUAL, np.uint8),
    }
    lists = {name: array.astype(np.int64).tolist() for name, array in whole.items()}
    return lists | {"tree_roots": roots} | {n: numpy_helper.from_array(a, n) for n, a in tensors.items()}


def _pieces(grown: Tree, target: int, nodes: int, leaves: int) -> dict[str, np.ndarray]:
    """One tree's share. `nodes` and `leaves` are how many there are before it."""
    inner = grown.left >= 0
    if not inner[0]:
        return _stump(grown, target, leaves)
    place = np.where(inner, nodes + np.cumsum(inner) - 1, leaves + np.cumsum(~inner) - 1)
    left, right = grown.left[inner], grown.right[inner]
    return {
        "nodes_featureids": grown.feature[inner],
        "nodes_splits": grown.threshold[inner],
        "nodes_missing_value_tracks_true": grown.missing_left[inner],
        "nodes_truenodeids": place[left],
        "nodes_trueleafs": ~inner[left],
        "nodes_falsenodeids": place[right],
        "nodes_falseleafs": ~inner[right],
        "leaf_weights": grown.values[~inner, 0],
        "leaf_targetids": np.full((~inner).sum(), target),
    }


def _stump(grown: Tree, target: int, leaves: int) -> dict[str, np.ndarray]:
    """A tree that is one leaf: the operator wants a node, so both its sides lead there."""
    zero, one, there = np.zeros(1), np.ones(1), np.array([leaves])
    return {
        "nodes_featureids": zero, "nodes_splits": zero, "nodes_missing_value_tracks_true": zero,
        "nodes_truenodeids": there, "nodes_trueleafs": one, "nodes_falsenodeids": there, "nodes_falseleafs": one,
        "leaf_weights": grown.values[:1, 0], "leaf_targetids": np.array([target]),
    }  # fmt: skip
