"""Operators that honest networks need and that believe the sizes of their tensors: these are compared before each call.

PyTorch's own layers compare them; the operators below them do not, and read the memory of others, or end the process. So a
network calls the functions here in their place. Each takes what its operator takes, and raises RuntimeError as others do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

_aten = torch.ops.aten


def attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **named: Any) -> Any:
    """As many values as keys: `[…, keys, width]` each."""
    _fits(key.dim() > 1 and value.dim() > 1 and key.shape[-2] == value.shape[-2] and key.numel() > 0, "attention")
    return _aten.scaled_dot_product_attention.default(query, key, value, *rest, **named)


def normalized(x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, *rest: Any) -> Any:
    """A number for each column of `x`, `[n, columns, …]`."""
    known = (part for part in (weight, bias, mean, variance) if part is not None)
    _fits(x.dim() > 1 and all(part.numel() == x.shape[1] for part in known), "a batch norm")
    return _aten._native_batch_norm_legit_no_training.default(x, weight, bias, mean, variance, *rest)


def weighed(v: Tensor, g: Tensor, dim: int = 0) -> Any:
    """A length for each row of weights."""
    _fits(_weighs(v, g, dim), "a weight norm")
    return _aten._weight_norm.default(v, g, dim)


def weighed_and_norm(v: Tensor, g: Tensor, dim: int = 0) -> Any:
    """The same, and the lengths that they had."""
    _fits(_weighs(v, g, dim) and dim >= 0, "a weight norm")
    return _aten._weight_norm_interface.default(v, g, dim)


def recurrent(x: Tensor, states: list[Tensor], weights: list[Tensor], biases: bool, layers: int, *rest: Any) -> Any:
    """The states and weights of every layer and direction as wide as rows, states and layers make them. `rest` is dropout,
    training, two directions, and whether rows come first."""
    _fits(
        len(states) == 2 and all(part.dim() == 3 for part in (x, *states)) and layers > 0 and len(rest) == 4, "an LSTM"
    )
    directions, rows = 1 + bool(rest[2]), x.shape[0 if rest[3] else 1]
    told, kept = states[0].shape[2], states[1].shape[2]
    expected = []
    for i in range(layers * directions):
        width = x.shape[2] if i < directions else told * directions
        expected += [
            (4 * kept, width),
            (4 * kept, told),
            *[(4 * kept,)] * (2 * biases),
            *[(told, kept)] * (told != kept),
        ]
        _fits(len(expected) <= len(weights), "an LSTM")
    count = layers * directions
    _fits([*map(tuple, (part.shape for part in weights))] == expected, "an LSTM")
    _fits([*states[0].shape[:2], *states[1].shape[:2]] == [count, rows] * 2, "an LSTM")
    return _aten.lstm.input(x, states, weights, biases, layers, *rest)


_FITTING: dict[Any, Callable[..., Any]] = {
    _aten.scaled_dot_product_attention.default: attention,
    _aten._native_batch_norm_legit_no_training.default: normalized,
    _aten.lstm.input: recurrent,
    _aten._weight_norm.default: weighed,
    _aten._weight_norm_interface.default: weighed_and_norm,
}


def fitted(network: Any) -> Any:
    """The network, which calls them: in the graphs that it calls, too."""
    for part in network.modules():
        trusting = (
            [node for node in part.graph.nodes if node.target in _FITTING] if isinstance(part, GraphModule) else []
        )
        for node in trusting:
            node.target = _FITTING[node.target]
        if trusting:
            part.recompile()
    return network


def _weighs(v: Tensor, g: Tensor, dim: int) -> bool:
    alone = dim in (0, v.dim() - 1)  # else PyTorch composes it of operators that compare
    return v.numel() > 0 and (not alone or g.numel() == v.shape[dim])


def _fits(sizes: bool, what: str) -> None:
    if not sizes:
        raise RuntimeError(f"the sizes of {what} do not fit each other")
