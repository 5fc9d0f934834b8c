"""The port of a runtime: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Flag, auto
from functools import lru_cache
from typing import Any, Protocol

import numpy as np


class Want(Flag):
    """What a request wants to know; a batch computes the union of its members' wishes."""

    NONE = 0
    LABELS = auto()
    PROBABILITIES = auto()
    RAW = auto()


@dataclass(slots=True)
class Outputs:
    """What a runtime answered for `rows` rows. Every array has `rows` as its first dimension, or is None.

    A network with several outputs answers them all in `named`, by their names, and the others are None.
    """

    rows: int
    labels: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    raw: np.ndarray | None = None
    named: dict[str, np.ndarray] | None = None

    def consistent(self) -> bool:
        """Whether every array has exactly one row per row."""
        arrays = (self.labels, self.probabilities, self.raw, *(self.named or {}).values())
        return all(a is None or (a.ndim > 0 and len(a) == self.rows) for a in arrays)

    def cut(self, start: int, stop: int) -> Outputs:
        """The rows from `start` to before `stop`."""
        return Outputs(
            stop - start,
            None if self.labels is None else self.labels[start:stop],
            None if self.probabilities is None else self.probabilities[start:stop],
            None if self.raw is None else self.raw[start:stop],
            None if self.named is None else {name: array[start:stop] for name, array in self.named.items()},
        )

    @staticmethod
    def join(parts: Sequence[Outputs]) -> Outputs:
        """The parts of one long request, in order."""
        return Outputs(
            sum(part.rows for part in parts),
            _join([part.labels for part in parts]),
            _join([part.probabilities for part in parts]),
            _join([part.raw for part in parts]),
            _join_named([part.named for part in parts if part.named is not None]),
        )


def _join(arrays: Sequence[np.ndarray | None]) -> np.ndarray | None:
    present = [a for a in arrays if a is not None]
    return np.concatenate(present) if len(present) == len(arrays) else None


def _join_named(parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray] | None:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None


@dataclass(frozen=True, slots=True)
class Engine:
    """What computes a version's answers, and why nothing faster does, where that was tried.

    `parallel` says that it releases the GIL and may be called from several threads at once.
    """

    name: str
    why: str | None = None
    parallel: bool = False


class Runtime(Protocol):
    """One loaded model. `predict` is called from one thread at a time unless the engine is `parallel`, and must not keep the
    arrays."""

    @property
    def classes(self) -> np.ndarray | None:
        """The classes, in the order of the probability columns; None if the model is no classifier."""
        ...

    @property
    def engine(self) -> Engine:
        """What computes the answers."""
        ...

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """Computes at least what is wanted. `arrays` has the layout of the version's `InputSchema`."""
        ...

    def close(self) -> None:
        """Releases what garbage collection would not."""
        ...


DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64",
    "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64",
    "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip


def datatype_of(array: np.ndarray) -> str:
    """The Open Inference Protocol's word for an array's dtype; everything that is no number is BYTES."""
    return _datatype(array.dtype)


@lru_cache(maxsize=64)
def _datatype(dtype: np.dtype[Any]) -> str:
    return DATATYPES.get(dtype.name, "BYTES")  # the name is worked out anew each time
