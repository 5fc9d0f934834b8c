"""What the outputs of a network with several are called, and which of them are answered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from registry.mlmodel import MLmodel, Tensor


def promised(model: MLmodel) -> tuple[str, ...]:
    """The names of the output tensors of a version's signature; nothing unless each has one of its own."""
    outputs = model.signature.outputs if model.signature is not None else ()
    names = tuple(spec.name for spec in outputs if isinstance(spec, Tensor) and spec.name)
    return names if len(set(names)) == len(outputs) else ()


def by_number(count: int) -> tuple[str, ...]:
    """Names for outputs that have none."""
    return tuple(f"output-{i}" for i in range(count))


@lru_cache(maxsize=64)
def choose(own: tuple[str, ...], names: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
    """The outputs that are answered, each with its place among the network's `own` and its name.

    Those that the signature `names`, if the network has all of these; else all, by the signature's names where those are as
    many, and by their own where not.
    """
    if names and set(names) <= set(own):
        return tuple((own.index(name), name) for name in names)
    return tuple(enumerate(names if len(names) == len(own) else own))


def listed(names: Sequence[str]) -> str:
    """Names for a message: each cut, and no more than ten."""
    return ", ".join([name[:64] for name in names[:10]]) + (", …" if names[10:] else "")
