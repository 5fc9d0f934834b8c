"""Freed memory is kept for the next request, and given back when that is asked for; told by the kernel's own counts."""

import asyncio
import json
import os
import platform
import subprocess
import sys
import threading
from typing import Any

import pytest

from registry.versions import ModelVersion
from serving.memory import Memory
from serving.servable import Servable

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library decides for itself")

REQUESTS = """
import json, os, resource
from pathlib import Path
from serving.malloc import give_back, keep_freed

def request():
    held = [b"x" * (size << 10) for size in (400, 3000, 700, 400)]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

keep_freed(os.environ)
for _ in range(3):
    request()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    request()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
many = [b"x" * (1 << 20) for _ in range(20)]
del many
kept = resident()
give_back()
print(json.dumps({"faults": faults, "given_back": kept - resident()}))
"""


def told(**environ: str) -> dict[str, int]:
    """What the kernel counts in a process that handles fifty large requests."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", REQUESTS], env={**clean, **environ}, capture_output=True, text=True, check=True
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


def test_large_requests_reuse_what_the_last_one_freed() -> None:
    """No page is zeroed again for them; and what is kept can be had back."""
    found = told()
    assert found["faults"] < 50
    assert found["given_back"] > 10 << 20


def test_the_operator_may_say_otherwise() -> None:
    """By glibc's own variables; large pages would make it fewer."""
    assert told(MALLOC_TRIM_THRESHOLD_="131072", MALLOC_MMAP_THRESHOLD_="131072")["faults"] > 500


class Empty:
    """Nobody holds anything."""

    holders = ()

    def holder(self, servable: Servable) -> Any:
        raise AssertionError("nobody is asked to leave")

    def idle(self, coming: Servable) -> None:
        return None

    def leave(self, servable: Servable) -> None:
        raise AssertionError("nobody is asked to leave")


@pytest.mark.audit("19")
async def test_the_loop_does_not_stand_still_while_memory_is_given_back() -> None:
    """Which takes a tenth of a second for a gigabyte: whoever measures a load under a budget has a thread do it."""
    called: list[threading.Thread] = []

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event == "ctypes.dlsym" and args[1] == "malloc_trim":
            called.append(threading.current_thread())

    sys.addaudithook(heard)  # it cannot be taken away again, and does nothing from here on
    async with Memory(Empty(), 1 << 40, lambda: 0).room(Servable("m", ModelVersion("m", "1"))):
        await asyncio.sleep(0)
    mine = list(called)
    assert len(mine) == 2
    assert threading.main_thread() not in mine
