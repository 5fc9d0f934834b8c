"""Environments of their own for the peers whose requirements do not go with ours.

python -m scripts.bench.environments [NAME...]

makes them under `~/.cache/headway-bench` (or `$HEADWAY_BENCH_HOME`), from PyPI, once.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

#: What is installed beside the same scikit-learn as ours. MLServer 1.7.1 says neither that parallel workers fail with a
#: later uvloop, nor that a later FastAPI breaks it; httptools it does not require, and is much faster with.
PINS: dict[str, tuple[str, ...]] = {
    "mosec": ("mosec==0.9.8",),
    "litserve": ("litserve==0.2.19",),
    "bentoml": ("bentoml==1.4.39",),
    "mlserver": ("mlserver==1.7.1", "mlserver-sklearn==1.7.1", "fastapi==0.115.14", "uvloop==0.21.0", "httptools"),
}


class Unavailable(Exception):
    """A server that cannot be had here; the text says why."""


def home() -> Path:
    """Where the environments are."""
    return Path(os.environ.get("HEADWAY_BENCH_HOME", Path.home() / ".cache" / "headway-bench"))


def folder(name: str) -> Path:
    """The `bin` of a peer's environment, made now if it is not there. Raises Unavailable with pip's last line."""
    place = home() / name
    done = place / "installed"
    wanted = "\n".join([*PINS[name], f"scikit-learn=={version('scikit-learn')}"])
    if not done.exists() or done.read_text() != wanted:
        _install(name, place, wanted.splitlines())
        done.write_text(wanted)
    return place / "bin"


def _install(name: str, place: Path, packages: list[str]) -> None:
    print(f"installing {name} into {place} …", file=sys.stderr, flush=True)
    venv.create(place, with_pip=True, clear=True)
    command = [str(place / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check", *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable("it could not be installed within 15 minutes") from None
    if done.returncode:
        raise Unavailable(f"it could not be installed: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")


def main() -> None:
    """Makes all of them, or those named."""
    for name in sys.argv[1:] or PINS:
        try:
            print(f"{name}: {folder(name)}")
        except Unavailable as reason:
            print(f"{name}: {reason}")


if __name__ == "__main__":
    main()
