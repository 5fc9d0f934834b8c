"""One process of one version, as the server holds it: started, asked, watched, ended."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from registry.errors import InvalidModel
from serving.runtimes.wire import Malformed, Message, pack, receive

log = logging.getLogger("headway.process")

_ROOT = Path(__file__).resolve().parent.parent.parent
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MOST_THREADS = 4
_LOOK_SECONDS = 0.1
_MOST_LINE = 1000
_LINES_PER_PERIOD, _PERIOD_SECONDS = 50, 10.0
# The kernel's parent-death signal counts the thread that started the process as its parent: this one lives as long as
# the server does.
_spawner = ThreadPoolExecutor(1, "headway-spawn")


class Ending(StrEnum):
    """Why a process of a version is gone."""

    CRASHED = "crashed"
    EXITED = "exited"
    MEMORY = "memory"
    HUNG = "hung"
    PROTOCOL = "protocol"
    START = "start"


class Gone(Exception):
    """The process ended, or had to be ended, before it answered."""


class Unsent(Gone):
    """The process had ended before the question reached it: nothing was computed."""


class Child:
    """A running process. One thread asks at a time; any thread may end it."""

    def __init__(self, facts: Mapping[str, Any], memory_bytes: int) -> None:
        """`facts` name the version on its log lines; `memory_bytes` is a bound, 0 for none. Raises OSError."""
        self._facts, self._memory = facts, memory_bytes
        self._verdict: Ending | None = None
        self._spent = False  # after a failure the stream may hold the rest of an answer that nobody reads
        self._lock, self._talk, self._ended = threading.Lock(), threading.Lock(), threading.Event()
        self._stream, theirs = socket.socketpair()
        with theirs:
            self._process = _spawner.submit(_popen, theirs.fileno()).result()
        output = self._process.stdout
        assert output is not None
        for name, work in {"log": lambda: _relay(output, facts), "watch": self._watch}.items():
            threading.Thread(target=work, daemon=True, name=f"headway-process-{name}").start()

    @property
    def pid(self) -> int:
        """The process's id, which is its group's too."""
        return self._process.pid

    def greet(self, order: Mapping[str, Any], seconds: float) -> Message:
        """Has the version loaded. Raises InvalidModel with the process's own reason, or that it ended or was late."""
        try:
            hello = self._exchange(pack(order, {}), seconds)
        except TimeoutError:
            self.end(Ending.HUNG)
            raise InvalidModel(f"loading took longer than {seconds:g} seconds") from None
        except Gone as gone:
            raise InvalidModel(f"{gone} while it loaded: {self._post_mortem()}") from gone
        if "failed" in hello.facts:
            raise InvalidModel(str(hello.facts["failed"])[:300])
        return hello

    def ask(self, question: bytes, seconds: float) -> Message:
        """The answer to one packed message. Ends a process that takes longer, or that answers nonsense.

        Raises Gone, and Unsent where the question certainly was not read.
        """
        try:
            return self._exchange(question, seconds)
        except TimeoutError:
            self.end(Ending.HUNG)
            raise Gone(f"the version's process did not answer within hang_seconds ({seconds:g})") from None

    def _exchange(self, question: bytes, seconds: float) -> Message:
        deadline = time.monotonic() + seconds
        with self._talk:
            if self._spent:
                raise Unsent("the version's process had ended")
            self._spent = True
            self._send(question, seconds)
            try:
                answer = receive(self._stream, deadline)
            except TimeoutError:
                raise
            except (EOFError, OSError) as error:
                raise Gone("the version's process ended") from error
            except Malformed as error:
                self.end(Ending.PROTOCOL)
                raise Gone(f"the version's process answered nonsense: {error}") from error
            self._spent = False
            return answer

    def _send(self, question: bytes, seconds: float) -> None:
        try:
            self._stream.settimeout(seconds)
            self._stream.sendall(question)
        except TimeoutError:
            raise
        except OSError as error:
            raise Unsent("the version's process had ended") from error

    def end(self, ending: Ending | None = None) -> None:
        """Kills the process and what it started. The first verdict counts; twice does no harm."""
        with self._lock:
            self._verdict = self._verdict or ending
            if self._process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)

    def hang_up(self) -> None:
        """Lets an idle process end by itself."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def wait(self) -> Ending:
        """Blocks until the process has ended, and returns why."""
        self._ended.wait()
        code = self._process.returncode or 0
        return self._verdict or (Ending.CRASHED if code < 0 else Ending.EXITED)

    def _watch(self) -> None:
        """Ends the process when it takes too much memory, and clears up when it has ended in whatever way."""
        while self._memory:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_LOOK_SECONDS)
                break
            if anonymous_bytes(self.pid) > self._memory:
                self.end(Ending.MEMORY)
        self._process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it started, if anything
        self.hang_up()  # wakes whoever still waits for an answer, and only then is the descriptor free for others
        with self._talk:
            self._stream.close()
        self._ended.set()

    def epitaph(self, ending: Ending) -> str:
        """How it ended, as a clause for people."""
        code = self._process.returncode or 0
        return {
            Ending.CRASHED: f"ended with signal {-code} ({_signal_name(-code)})",
            Ending.EXITED: f"exited with code {code}",
            Ending.MEMORY: f"took more than memory_mb ({self._memory // 2**20})",
            Ending.HUNG: "did not answer within hang_seconds",
            Ending.PROTOCOL: "answered nonsense",
            Ending.START: "did not start",
        }[ending]

    def _post_mortem(self) -> str:
        return self.epitaph(self.wait())


def anonymous_bytes(pid: int) -> int:
    """Memory of a process that no file backs, in bytes; 0 if it is gone, or where there is no /proc."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{pid}/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _popen(fd: int) -> subprocess.Popen[bytes]:
    """Spawned, never forked; a group of its own, so that Ctrl-C is the server's affair, and no descriptor but one."""
    return subprocess.Popen(  # noqa: S603  our own interpreter and module
        [sys.executable, "-P", "-u", "-m", "serving.runtimes.child", str(fd), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(os.environ),
        pass_fds=(fd,),
        start_new_session=True,
    )


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The server's own variables without Headway's, and with bounds for the threads of numeric libraries unless the
    operator has set them: many processes share the cores, and an idle pool must not spin on them."""
    kept = {name: value for name, value in environ.items() if not name.startswith("HEADWAY_")}
    threads = str(min(_MOST_THREADS, os.cpu_count() or 1))
    path = os.pathsep.join([str(_ROOT), *filter(None, [environ.get("PYTHONPATH")])])
    return {**dict.fromkeys(_THREADS, threads), "OMP_WAIT_POLICY": "PASSIVE", **kept, "PYTHONPATH": path}


def _relay(output: IO[bytes], facts: Mapping[str, Any]) -> None:
    """Writes what the process prints as log lines: cut, and at most fifty in ten seconds."""
    began, written, left_out = time.monotonic(), 0, 0
    with output:
        while line := output.readline(_MOST_LINE):
            if time.monotonic() - began > _PERIOD_SECONDS:
                _confess(left_out, facts)
                began, written, left_out = time.monotonic(), 0, 0
            if written < _LINES_PER_PERIOD:
                written += 1
                log.info("the version printed", extra={**facts, "line": line.decode("utf-8", "replace").rstrip()})
            else:
                left_out += 1
    _confess(left_out, facts)


def _confess(left_out: int, facts: Mapping[str, Any]) -> None:
    if left_out:
        log.warning("the version printed more than is logged", extra={**facts, "lines_left_out": left_out})


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
