"""What can follow from an observation: one patch, a wait, a refusal, or the end. Values, nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: One operation of a JSON patch (RFC 6902).
Operation = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Patch:
    """One change: a JSON patch of an object (`kind/name`). Its tests make it fail as a whole if somebody else was faster."""

    target: str
    operations: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing can be done yet. `until` is a clause; `pods` are the labels of those that are waited for, as a selector."""

    until: str
    pods: str | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nothing was done, and nothing will be: why, in whole sentences that end with what to type."""

    why: str


@dataclass(frozen=True, slots=True)
class Done:
    """What was asked for is so: what that is, and what to write down elsewhere."""

    what: str


Decision = Patch | Wait | Refuse | Done


def version_moves(at: str, old: str, new: str) -> tuple[Operation, ...]:
    """Operations that move MODEL_VERSION at `at` (a container's `env/N`) from one value to another.

    A merge patch would replace the whole list of containers, and an index alone could hit another variable.
    """
    return (
        {"op": "test", "path": f"{at}/name", "value": "MODEL_VERSION"},
        {"op": "test", "path": f"{at}/value", "value": old},
        {"op": "replace", "path": f"{at}/value", "value": new},
    )


def shares_text(shares: Iterable[tuple[str, int]]) -> str:
    """`version 2 has 10 %, version 1 has 90 %`, or that nobody has anything."""
    said = [f"{who} has {percent} %" for who, percent in shares if percent]
    return ", ".join(said) or "no version has traffic"


def no_version(service: str) -> Refuse:
    """An InferenceService whose version cannot be moved."""
    return Refuse(
        f"InferenceService {service} has no MODEL_VERSION in its first container, or none with a value of its own: there is no "
        "version to move. Next: write the number into the manifest, and apply it."
    )
