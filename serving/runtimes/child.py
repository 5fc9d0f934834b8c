"""The process of one version: loads it, and answers predictions over a socket until the socket closes.

Started as `python -m serving.runtimes.child FD PARENT`. Messages (`serving.runtimes.wire`):

    → {path, ignore_extra, task, activation, classes, accelerate, torch}   ← {ready, engine} with `classes`, or {failed: reason}
    → {rows, want} with the input's arrays              ← {} with the outputs' arrays, or {raised: class, text, trace, about_rows}
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from registry.errors import RegistryError
from registry.mlmodel import MLmodel, read_mlmodel
from serving.admission import BatchingLimits
from serving.configuration import Configuration, TorchOptions
from serving.refusals import about_rows
from serving.runtimes.base import Outputs, Runtime, Want
from serving.runtimes.choose import runtime_for
from serving.runtimes.wire import OUTPUT, Message, pack, receive
from serving.schema import compile_schema

_PR_SET_PDEATHSIG = 1
_OURS = ("serving", "registry", "features", "monitoring")
MOST_TEXT = 300


def main(fd: int, parent: int) -> int:
    """Runs until the server closes the socket; returns the exit code."""
    _die_with(parent)
    _die_first()
    faulthandler.enable()
    stream = socket.socket(fileno=fd)
    stream.set_inheritable(False)
    try:
        runtime = _load(receive(stream).facts)
    except Exception as error:  # noqa: BLE001  a version may fail in any way; the server says why
        traceback.print_exc()
        stream.sendall(pack({"failed": _reason(error)}, {}))
        return 1
    stream.sendall(pack({"ready": True, "engine": asdict(runtime.engine)}, _classes(runtime)))
    with contextlib.suppress(EOFError, OSError):
        while True:
            stream.sendall(_answer(runtime, receive(stream)))
    return 0


def _die_with(parent: int) -> None:
    """Asks the kernel to kill this process when the server ends, however it ends. Linux only; elsewhere the closed
    socket ends it between two predictions."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def _die_first() -> None:
    """When memory runs out the kernel takes this process, not the server."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _load(order: Mapping[str, Any]) -> Runtime:
    model = read_mlmodel(Path(order["path"]))
    schema = compile_schema(model.signature, ignore_extra=order["ignore_extra"])
    classes = order["classes"]
    configuration = Configuration(
        BatchingLimits(),
        None,
        task=order["task"],
        activation=order["activation"],
        classes=None if classes is None else tuple(classes),
        accelerate=order["accelerate"],
        torch=TorchOptions(**order["torch"]),
    )
    load = runtime_for(model)
    _step_aside(model)
    return load(model, schema, configuration)


def _step_aside(model: MLmodel) -> None:
    """Forgets those of our packages whose name the version's own code uses too: `import features` must be theirs.
    What this process needs of ours has been imported by now, and keeps working."""
    folders = {model.path / str(conf["code"]) for conf in model.flavors.values() if conf.get("code")}
    theirs = {entry.stem for folder in folders if folder.is_dir() for entry in folder.iterdir()}
    for name in list(sys.modules):
        if name.partition(".")[0] in theirs.intersection(_OURS):
            del sys.modules[name]


def _answer(runtime: Runtime, message: Message) -> bytes:
    try:
        facts = message.facts
        outputs = runtime.predict(tuple(message.arrays.values()), facts["rows"], Want(facts["want"]))
        return pack({}, _named(outputs) | _classes(runtime))
    except Exception as error:  # noqa: BLE001  the model may raise anything; the server isolates the row
        trace = "".join(traceback.format_exception(error))[-4000:]
        said = {"raised": type(error).__name__[:64], "text": str(error)[:MOST_TEXT], "trace": trace}
        return pack({**said, "about_rows": about_rows(error)}, {})


def _named(outputs: Outputs) -> dict[str, np.ndarray]:
    arrays = {"labels": outputs.labels, "probabilities": outputs.probabilities, "raw": outputs.raw}
    several = {f"{OUTPUT}{name}": array for name, array in (outputs.named or {}).items()}
    return {name: np.asarray(array) for name, array in (arrays | several).items() if array is not None}


def _classes(runtime: Runtime) -> dict[str, np.ndarray]:
    return {} if runtime.classes is None else {"classes": runtime.classes}


def _reason(error: Exception) -> str:
    """The first line of an error; a library's error also says its class."""
    text = (str(error).strip().splitlines() or [""])[0]
    return (text if isinstance(error, RegistryError) else f"{type(error).__name__}: {text}")[:MOST_TEXT]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
