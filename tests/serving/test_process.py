"""A version in a process of its own, with real processes: what it answers, and what its end does."""

import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from registry.errors import InvalidModel
from registry.versions import ModelVersion
from serving.configuration import ModelOptions
from serving.decoding import decode_instances
from serving.errors import ModelFailed, NotReady
from serving.loading import Loaded, Loader, warm
from serving.manager import ModelManager
from serving.runtimes.base import Outputs, Want
from serving.runtimes.process import Processes, ProcessRuntime, Raised, pause
from serving.runtimes.spawn import Ending, environment
from serving.status import model_status
from tests.fakes import Watcher
from tests.models import Folder, columns, fiend, stuck, with_helper

DO = columns(("do", "string"), output="long")
Start = Callable[..., Loaded]


class Losses(list[Ending]):
    """Hears why processes were replaced."""

    def __call__(self, version: str, ending: Ending) -> None:
        assert version == "1"
        self.append(ending)


@pytest.fixture
def lost() -> Losses:
    return Losses()


@pytest.fixture
def start(tmp_path: Path, lost: Losses) -> Iterator[Start]:
    """Saves a model, loads and warms it; every process has ended when the test has."""
    running: list[Loaded] = []
    count = itertools.count()

    def start(log: Any, signature: Any = DO, seconds: float = 60, **options: Any) -> Loaded:
        path = tmp_path / f"model-{next(count)}"
        save = {mlflow.pyfunc.log_model: mlflow.pyfunc.save_model}.get(log.func, mlflow.sklearn.save_model)
        save(path=str(path), signature=signature, pip_requirements=["mlflow"], **log.keywords)
        chosen = ModelOptions(**{"allow_code": True, **options})
        running.append(Loader(Folder(path), chosen, None, Processes(seconds, lost)).load(ModelVersion("m", "1")))
        warm(running[-1])
        return running[-1]

    yield start
    for loaded in running:
        loaded.dispose()


def process(loaded: Loaded) -> ProcessRuntime:
    assert loaded.process is not None
    return loaded.process


def ask(loaded: Loaded, *rows: Any, want: Want = Want.LABELS) -> Outputs:
    arrays = decode_instances(loaded.schema, [r if isinstance(r, list) else [r] for r in rows], frozenset()).arrays
    assert arrays is not None
    return loaded.runtime.predict(arrays, len(rows), want)


def do(loaded: Loaded, *what: str) -> list[int]:
    labels = ask(loaded, *what).labels
    assert labels is not None
    return list(labels.tolist())


def until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def up_again(loaded: Loaded, before: int | None) -> None:
    until(lambda: process(loaded).pid not in (None, before))


def alive(pid: int) -> bool:
    """Whether the process runs; one that waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- which runtime ------------------------------------------------------------------------------------------------


def test_code_gets_a_process_and_data_does_not(start: Start) -> None:
    """`auto` asks whether the version brings code; the operator may say otherwise, both ways."""
    tree = DecisionTreeClassifier().fit([[0.0], [1.0]], np.array(["fine", "worn"]))
    honest = partial(mlflow.sklearn.log_model, sk_model=tree, serialization_format="cloudpickle")
    assert start(honest, columns(("a", "double"))).process is None
    assert start(fiend(), isolation="none").process is None
    forced = start(honest, columns(("a", "double")), isolation="process")
    outputs = ask(forced, 0.0, 1.0, want=Want.LABELS | Want.PROBABILITIES)
    assert process(forced).classes is not None
    assert process(forced).classes.tolist() == ["fine", "worn"]
    assert outputs.labels is not None
    assert outputs.probabilities is not None
    assert (outputs.labels.tolist(), outputs.probabilities.tolist()) == (["fine", "worn"], [[1, 0], [0, 1]])


def test_two_versions_keep_their_own_helper(start: Start, tmp_path: Path) -> None:
    """Side by side in one server, each runs its own module, even one that has the name of a package of ours."""
    for name in ("helper", "features"):
        versions = [start(with_helper(tmp_path / f"{name}{who}", who, name)) for who in (1, 2)]
        for _ in range(2):
            assert [do(version, "a", "b") for version in versions] == [[1, 1], [2, 2]]


def test_every_type_of_the_schema_arrives_unchanged(start: Start) -> None:
    """What the model sees, and what it answers, is to the letter what it is in the server; strings of 200 kB too."""

    class Witness(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            seen = [[f"{type(v).__name__} {v!r}" for v in model_input[c]] for c in model_input]
            return [" ".join([*map(str, model_input.dtypes), *row]) for row in zip(*seen, strict=True)]

    types = ("double", "float", "long", "integer", "boolean", "string", "binary", "datetime")
    nullable = [t for t in types if t not in ("long", "integer")]  # which MLflow does not take as floats
    signature = columns(*((t, t) for t in types), *((f"o-{t}", t, False) for t in nullable), output="string")
    log = partial(mlflow.pyfunc.log_model, python_model=Witness())
    rows: list[list[Any]] = [
        [1.5, 0.5, 2**60, -7, True, "ü" * 100_000, "AP8=", "2026-01-02T03:04:05.678901", *[None] * 6],
        [-0.0, 3.0, -1, 2**31 - 1, False, "", "", "1970-01-01", 1.5, 2.5, True, "x", "eA==", "2026-01-01"],
    ]
    here, there = start(log, signature, isolation="none"), start(log, signature)
    expected, answered = ask(here, *rows).labels, ask(there, *rows).labels
    assert expected is not None
    assert answered is not None
    assert len(str(expected[0])) > 100_000
    assert (answered.dtype, answered.tolist()) == (expected.dtype, expected.tolist())


# -- how it ends --------------------------------------------------------------------------------------------------

RUBBISH = (b"\x80\x04\x95" + bytes(64)).hex()


@pytest.mark.parametrize(
    ("what", "ending", "says"),
    [
        ("crash", Ending.CRASHED, "SIGSEGV"),
        ("exit", Ending.EXITED, "code 3"),
        ("hang", Ending.HUNG, "hang_seconds"),
        (f"say {RUBBISH}", Ending.PROTOCOL, "nonsense"),
    ],
)
def test_an_ended_process_fails_its_rows_and_comes_back(
    start: Start, lost: Losses, what: str, ending: Ending, says: str
) -> None:
    """The rows in it fail, later ones are refused until a new process answers; the loss is told, and why."""
    loaded = start(fiend(), hang_seconds=2)
    before = process(loaded).pid
    with pytest.raises(ModelFailed):
        ask(loaded, what)
    refused = set()

    def back() -> bool:
        with contextlib.suppress(NotReady):
            refused.add(process(loaded).trouble)
            ask(loaded, "wait")
        return process(loaded).pid not in (None, before)

    until(back)
    assert any(says in str(trouble) for trouble in refused)
    assert do(loaded, "four") == [4]
    assert lost == [ending]
    assert process(loaded).trouble is None


def test_a_leak_ends_at_its_limit(start: Start, lost: Losses) -> None:
    """And the new process begins anew."""
    loaded = start(fiend(), memory_mb=700)
    before = process(loaded).pid
    for _ in range(40):
        try:
            ask(loaded, "leak")
        except (ModelFailed, NotReady):
            break
    up_again(loaded, before)
    assert lost == [Ending.MEMORY]
    assert do(loaded, "fine") == [4]


def test_an_exception_ends_nothing(start: Start, lost: Losses) -> None:
    """It is what it would be in the server, with the traceback of there for the log."""
    loaded = start(fiend())
    before = process(loaded).pid
    with pytest.raises(Raised, match=r"ValueError: as told(.|\n)*Traceback"):
        ask(loaded, "raise")
    assert (do(loaded, "fine"), process(loaded).pid, lost) == ([4], before, [])


def test_an_idle_process_that_is_killed_is_replaced(start: Start, lost: Losses) -> None:
    """Nobody has to ask first; the pause grows while it keeps ending."""
    loaded = start(fiend())
    for _ in range(2):
        before = process(loaded).pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        up_again(loaded, before)
    assert lost == [Ending.CRASHED] * 2


def test_a_process_that_cannot_start_again_is_tried_with_pauses(start: Start, lost: Losses, tmp_path: Path) -> None:
    """It says so, counts it, does not spin, and comes back when it can."""
    loaded = start(fiend())
    before = process(loaded).pid
    (tmp_path / "model-0" / "MLmodel").rename(tmp_path / "away")
    with pytest.raises(ModelFailed):
        ask(loaded, "crash")
    until(lambda: Ending.START in lost)
    assert "MLmodel" in str(process(loaded).trouble)
    (tmp_path / "away").rename(tmp_path / "model-0" / "MLmodel")
    up_again(loaded, before)
    assert do(loaded, "fine") == [4]
    assert [pause(1), pause(100) <= 72, 0.4 <= pause(2) <= 0.6, 3.2 <= pause(5) <= 4.8] == [0, True, True, True]


@pytest.mark.slow
def test_a_process_that_only_ends_is_given_up_on(start: Start, lost: Losses) -> None:
    """Five ends in a row without an answer, and there is no sixth; who owns the version is told why."""
    loaded, told = start(fiend()), list[str]()
    process(loaded).given_up = told.append
    until(lambda: told or crash(loaded))
    assert told == [
        "its process ended 5 times in a row and answered nothing between: it ended with signal 11 (SIGSEGV)"
    ]
    assert (lost, process(loaded).pid) == ([Ending.CRASHED] * 5, None)
    with pytest.raises(NotReady, match="SIGSEGV"):
        ask(loaded, "fine")


class OnlyOne:
    """Loads version 1 as a fiend, and no other (`VersionLoader`)."""

    def __init__(self, start: Start) -> None:
        self._start = start

    def load(self, version: ModelVersion) -> Loaded:
        if version.version != "1":
            raise InvalidModel("there is but one")
        return self._start(fiend())


async def test_what_is_given_up_on_while_its_alias_is_gone_still_says_why(start: Start) -> None:
    """Nothing tries it again, and its row stays with the reason until another version is aspired to."""
    manager = ModelManager("m", "models:/m@champion", OnlyOne(start), Watcher())
    running = asyncio.create_task(manager.run())
    async with asyncio.timeout(60):
        manager.aspire((ModelVersion("m", "1"),))
        await manager.turn.wait()
        with manager.lease() as servable:
            manager.aspire((), "the alias is gone")
            process(servable.ready[0]).given_up("it only ends")
        await servable.gone.wait()
        assert [(row["state"], row["reason"]) for row in model_status(manager)["versions"]] == [
            ("FAILED", "it only ends")
        ]
        with pytest.raises(NotReady, match="version 1 FAILED: it only ends"):
            manager.hold()
        manager.aspire((ModelVersion("m", "2"),))
        while [row["version"] for row in model_status(manager)["versions"]] != ["2"]:
            await asyncio.sleep(0.01)
    running.cancel()
    manager.close()


def crash(loaded: Loaded) -> None:
    with contextlib.suppress(ModelFailed, NotReady):
        ask(loaded, "crash")


@pytest.mark.slow
def test_an_answer_in_between_begins_the_count_anew(start: Start, lost: Losses) -> None:
    """A version that answers somebody now and then is not given up on."""
    loaded = start(fiend())
    for ends in range(1, 6):
        before = process(loaded).pid
        crash(loaded)
        up_again(loaded, before)
        assert len(lost) == ends
        if ends == 2:
            assert do(loaded, "fine") == [4]


def test_loading_that_fails_or_hangs_is_the_versions_failure(start: Start, lost: Losses, tmp_path: Path) -> None:
    """With the process's own reason, or that it took too long; no process stays, and none is started again."""
    with pytest.raises(InvalidModel, match="loading took longer than 4 seconds"):
        start(stuck(), seconds=4)
    with pytest.raises(InvalidModel, match=r"took more than memory_mb \(20\)"):
        start(fiend(), memory_mb=20)
    until(lambda: not children(os.getpid()))
    helped = with_helper(tmp_path / "broken", 1)
    (tmp_path / "broken" / "helper.py").write_text("raise OSError('no disk')")
    with pytest.raises(Raised, match="OSError: no disk"):
        start(helped)
    assert lost == []


def children(parent: int) -> list[int]:
    """The ids of a process's children that run `serving.runtimes.child`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent
            if mine and b"serving.runtimes.child" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def test_unloading_ends_the_process(start: Start) -> None:
    """An idle one and a busy one; unloading twice does no harm."""
    idle, busy = start(fiend()), start(fiend())
    pids = [process(idle).pid, process(busy).pid]
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(ask, busy, "hang")
        for loaded in (idle, busy, busy):
            loaded.dispose()
        assert isinstance(hanging.exception(), ModelFailed | NotReady)
    assert not any(alive(pid) for pid in pids if pid)
    with pytest.raises(NotReady):
        ask(idle, "fine")


def test_the_process_inherits_no_secret_of_ours_and_few_threads() -> None:
    """Headway's own variables stay; the operator's word on threads counts."""
    made = environment({"HEADWAY_REGISTRY__WEBHOOK_SECRET": "x", "OMP_NUM_THREADS": "7", "HOME": "/h"})
    assert not [name for name in made if name.startswith("HEADWAY_")]
    assert (made["OMP_NUM_THREADS"], made["HOME"]) == ("7", "/h")
    assert 1 <= int(made["MKL_NUM_THREADS"]) <= 4
