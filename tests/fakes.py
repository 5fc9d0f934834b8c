"""A registry and a loader that live in memory: for what real ones can only do slowly, or not on command."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from registry.errors import InvalidModel, RegistryUnavailable, VersionNotFound
from registry.mlmodel import Column, Signature
from registry.policies import Catalogue, EveryCarrier, FollowAlias, Pinned, Policy
from registry.versions import ModelVersion
from serving.configuration import ModelOptions, resolve
from serving.lifecycle import State
from serving.loading import Loaded
from serving.runtimes.base import Engine, Outputs, Want
from serving.schema import compile_schema

SIGNATURE = Signature((Column("a", "double"),), (Column("", "double"),))


class Registry:
    """A mutable registry (`VersionSource`): numbers and aliases by name. It counts what it is asked, and can be down."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[str]] = {}
        self.aliases: dict[tuple[str, str], str] = {}
        self.asked: Counter[str] = Counter()
        self.down = False

    def add(self, name: str, *numbers: str, **aliases: str) -> None:
        self.numbers.setdefault(name, []).extend(numbers)
        self.aliases.update({(name, alias): number for alias, number in aliases.items()})

    def catalogue(self, policy: Policy) -> Catalogue:
        self.asked[policy.uri] += 1
        if self.down:
            raise RegistryUnavailable("the registry is down")
        match policy:
            case Pinned(name, number):
                wanted = number
            case FollowAlias(name, alias):
                wanted = self.aliases.get((name, alias), "")
            case EveryCarrier(alias):
                return tuple(self.version(name, v) for (name, a), v in self.aliases.items() if a == alias)
            case _:
                raise NotImplementedError
        if wanted not in self.numbers.get(name, ()):
            raise VersionNotFound(f"{policy.uri} does not exist in the registry")
        return (self.version(name, wanted),)

    def version(self, name: str, number: str) -> ModelVersion:
        mine = sorted(alias for (n, alias), v in self.aliases.items() if (n, v) == (name, number))
        return ModelVersion(name, number, f"source-{number}", aliases=tuple(mine))


class Constant:
    """A runtime whose answer is its version's number; used after its end, it fails."""

    classes = None
    engine = Engine("constant")

    def __init__(self, loader: Loader, number: float, size: int) -> None:
        self._loader, self._number, self.size, self._closed = loader, number, size, False

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        assert not self._closed, "used after it was disposed of"
        self._loader.answer.wait(10)
        return Outputs(rows, np.full(rows, self._number))

    def close(self) -> None:
        self._loader.end.wait(10)
        assert not self._closed, "disposed of twice"
        self._closed = True
        with self._loader.lock:
            self._loader.resident -= self.size


@dataclass
class Files:
    """What a version's files would be: a size."""

    size: int
    path: Path = Path()
    digest: str = ""

    def release(self) -> None:
        """Nothing holds them."""


@dataclass
class Loader:
    """Builds versions at once (`VersionLoader`), unless a gate is closed: `gate` and `end` hold loads and disposals,
    `answer` predictions, and `hangs` the loads of one version. `resident` is the memory that its versions hold; `bad`
    ones cannot be loaded, and `raises` is what those raise."""

    sizes: dict[str, int] = field(default_factory=dict)
    bad: set[tuple[str, str]] = field(default_factory=set)
    raises: BaseException = field(default_factory=lambda: InvalidModel("it is bad"))
    hangs: dict[tuple[str, str], threading.Event] = field(default_factory=dict)
    resident: int = 0
    loads: Counter[tuple[str, str]] = field(default_factory=Counter)
    gate: threading.Event = field(default_factory=threading.Event)
    end: threading.Event = field(default_factory=threading.Event)
    answer: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Lets everything through."""
        for gate in (self.gate, self.end, self.answer, *self.hangs.values()):
            gate.set()
        self.hangs.clear()

    def hang(self, name: str, number: str) -> None:
        """Loads of this version begin, and do not end, until everything is let through, or this version."""
        self.hangs[name, number] = threading.Event()

    def let(self, name: str, number: str) -> None:
        """Its loads go on."""
        self.hangs.pop((name, number)).set()

    def load(self, version: ModelVersion) -> Loaded:
        self.loads[version.name, version.version] += 1
        self.gate.wait(10)
        if (hangs := self.hangs.get((version.name, version.version))) is not None:
            hangs.wait(30)
        if (version.name, version.version) in self.bad:
            raise self.raises
        size = self.sizes.get(version.name, 1)
        with self.lock:
            self.resident += size
        runtime = Constant(self, float(version.version), size)
        configuration = resolve(ModelOptions(timeout_ms=0), {}, {})
        return Loaded(runtime, compile_schema(SIGNATURE), SIGNATURE, configuration, files=Files(size))


class Watcher:
    """Hears everything, and remembers which versions have gauges."""

    def __init__(self) -> None:
        self.states: dict[tuple[str, str], list[State]] = {}

    def state_changed(self, model: str, version: str, state: State) -> None:
        self.states.setdefault((model, version), []).append(state)

    def gone(self, model: str, version: str) -> None:
        self.states.pop((model, version), None)

    def batch(self, model: str, version: str, requests: int, rows: int, seconds: float) -> None: ...

    def overdue(self, model: str, version: str, seconds: float) -> None: ...

    def asked(self, model: str, version: str, outcome: str) -> None: ...

    def evicted(self, model: str, version: str, reason: str) -> None: ...
