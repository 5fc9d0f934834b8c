"""Versions that attack whoever loads them, and the file that proves it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from sklearn.linear_model import LinearRegression

from registry.versions import ModelVersion
from serving.configuration import ModelOptions
from serving.decoding import decode_instances
from serving.loading import Loaded, Loader, warm
from serving.runtimes.base import Want
from tests.models import Folder, columns, linear

SIGNATURE = columns(("a", "double"), ("b", "double"))
ROWS, SUMS = [[1.0, 2.0], [3.0, 4.0]], [3.0, 7.0]


class Bomb:
    """Touches a file when it is unpickled, and turns into nothing."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def load(path: Path, **allowed: bool) -> Loaded:
    return Loader(Folder(path), ModelOptions(**allowed, isolation="none"), None).load(ModelVersion("m", "1"))


def answer(loaded: Loaded) -> list[float]:
    """The loaded version's answer to ROWS, warmed up as a server would."""
    warm(loaded)
    arrays = decode_instances(loaded.schema, ROWS, frozenset()).arrays
    assert arrays is not None
    labels = loaded.runtime.predict(arrays, 2, Want.LABELS).labels
    loaded.dispose()
    assert labels is not None
    return [float(v) for v in labels]


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the MLmodel file, which whoever writes a version controls."""
    document = yaml.safe_load((path / "MLmodel").read_text())
    change(document)
    (path / "MLmodel").write_text(yaml.safe_dump(document))


class Spot:
    """Where one test's version and its canary lie."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.canary = folder, folder / "model", folder / "canary"

    def save(self, flavor: Any, *args: Any, **more: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = {"signature": SIGNATURE, "pip_requirements": ["mlflow"], **more}
            flavor.save_model(*args, path=str(self.model), **said)
        self.canary.unlink(missing_ok=True)  # MLflow itself may have loaded what it saved

    def code(self, name: str, body: str) -> str:
        """A Python file whose first act is to touch the canary."""
        file = self.folder / name
        file.write_text(f"from pathlib import Path\nPath({str(self.canary)!r}).touch()\n{body}")
        return str(file)


def estimator(bomb: Path | None = None) -> LinearRegression:
    model = linear(1.0, 1.0)
    if bomb is not None:
        model.note = Bomb(bomb)
    return model
