"""Networks through torch.compile: compiled when they are loaded, compared with themselves, and never compiled by a request."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.pytorch import TorchRuntime

log = logging.getLogger("headway.pytorch")
#: One row is compiled for itself, and any other number as a variable: two tells PyTorch so.
_ROWS = (2, 1, 3, 32)
_EVERY = Want.LABELS | Want.PROBABILITIES | Want.RAW


class _NotSame(Exception):
    """The compiled network does not answer as the network does. The text is a clause."""


class _Settled:
    """A compiled network that compiles while it is loaded; later a batch of a new form runs as it would uncompiled."""

    def __init__(self, network: Any) -> None:
        self._compiled = torch.compile(network, dynamic=True)
        self.stance = "default"

    def __call__(self, *inputs: torch.Tensor) -> Any:
        with torch.compiler.set_stance(self.stance):
            return self._compiled(*inputs)


def compiled(native: TorchRuntime, example: tuple[np.ndarray, ...]) -> TorchRuntime:
    """The network compiled, or `native`, whose engine then says why not. Takes seconds to minutes."""
    network = _Settled(native.network)
    fast = native.through(network, Engine("torch.compile"))
    try:
        for rows in _ROWS:
            arrays = tuple(_around(array, rows) for array in example)
            _compare(fast.predict(arrays, rows, _EVERY), native.predict(arrays, rows, _EVERY), native)
    except _NotSame as error:
        why = str(error)
    except Exception as error:
        log.exception("compiling stumbled")  # compilers are foreign code, and need what not every machine has
        why = f"torch.compile raised {type(error).__name__}"
    else:
        network.stance = "eager_on_recompile"
        return fast
    return native.through(native.network, replace(native.engine, why=why))


def _around(array: np.ndarray, rows: int) -> np.ndarray:
    """The example's rows, repeated; of floats with noise, the same for the same version."""
    repeated = np.resize(array, (rows, *array.shape[1:]))
    if array.dtype.kind != "f":
        return repeated
    noise = np.random.default_rng(rows).normal(size=repeated.shape)
    return (repeated + noise * np.maximum(np.abs(repeated), 1.0)).astype(array.dtype)


def _compare(found: Outputs, expected: Outputs, native: TorchRuntime) -> None:
    pairs: list[tuple[np.ndarray | None, np.ndarray | None, str]] = [(found.raw, expected.raw, "numbers")]
    if expected.named is not None:
        pairs = [((found.named or {}).get(name), array, "numbers") for name, array in expected.named.items()]
    elif native.classes is not None:
        if not np.array_equal(_array(found.labels), _array(expected.labels)):
            raise _NotSame("the compiled network's labels are not the network's")
        pairs = [(found.probabilities, expected.probabilities, "probabilities")]
    for ours, theirs, what in pairs:
        if not np.allclose(_array(ours), _array(theirs), rtol=native.tolerance, atol=native.tolerance, equal_nan=True):
            raise _NotSame(f"{what} of the compiled network differ by more than {native.tolerance:g}")


def _array(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array
