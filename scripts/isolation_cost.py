"""What a process of its own costs a version: the same model in the server and in a child, call by call in turn.

By the model's own library on both sides, so that the difference is the process's alone.

python -m scripts.isolation_cost
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from sklearn.linear_model import LogisticRegression

from registry.versions import ModelVersion
from serving.batching import Batcher
from serving.configuration import ModelOptions
from serving.loading import Loaded, Loader, warm
from serving.runtimes.base import Want
from tests.models import Folder

WIDTH, CALLS = 10, 3000


class _Sum(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
        return model_input.to_numpy().sum(axis=1)


def main() -> None:
    """Prints a table: median and 99th percentile in microseconds, and the difference of the medians."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, save in _models().items():
            path = Path(folder) / name
            save(path)
            here, there = _load(path, "none"), _load(path, "process")
            for rows in (1, 100):
                _print(name, rows, asyncio.run(_paired(here, there, rows)))
            there.dispose()


def _models() -> dict[str, Callable[[Path], Any]]:
    signature = ModelSignature(Schema([ColSpec("double", f"c{i}") for i in range(WIDTH)]), Schema([ColSpec("double")]))
    x = np.random.default_rng(0).normal(size=(200, WIDTH))
    estimator = LogisticRegression().fit(x, x[:, 0] > 0)
    said: dict[str, Any] = {"signature": signature, "pip_requirements": ["mlflow"]}
    return {
        "scikit-learn": lambda path: mlflow.sklearn.save_model(
            estimator, str(path), serialization_format="cloudpickle", **said
        ),
        "PythonModel": lambda path: mlflow.pyfunc.save_model(str(path), python_model=_Sum(), **said),
    }


def _load(path: Path, isolation: str) -> Loaded:
    batching = {"max_rows": 100, "inline_below_ms": 1.0}
    options = ModelOptions(allow_code=True, isolation=isolation, accelerate="off", entry=batching)
    loaded = Loader(Folder(path), options, None).load(ModelVersion(path.name, "1"))
    warm(loaded)
    return loaded


async def _paired(here: Loaded, there: Loaded, rows: int) -> list[list[float]]:
    """Microseconds of every call through a batcher: in the server, in the process."""
    matrix = np.random.default_rng(rows).normal(size=(rows, WIDTH))
    batchers = [_batcher(loaded) for loaded in (here, there)]
    taken: list[list[float]] = [[], []]
    for call in range(CALLS + 200):
        for which in (0, 1) if call % 2 else (1, 0):
            began = time.perf_counter()
            await batchers[which].predict((matrix,), rows, Want.LABELS, None)
            if call >= 200:
                taken[which].append((time.perf_counter() - began) * 1e6)
    for batcher in batchers:
        batcher.close()
    return taken


def _batcher(loaded: Loaded) -> Batcher:
    limits = loaded.configuration.limits
    return Batcher(loaded.runtime, limits, warm(loaded), lambda *_: None, inline=loaded.process is None)


def _print(name: str, rows: int, taken: list[list[float]]) -> None:
    here, there = (statistics.median(t) for t in taken)
    tails = [statistics.quantiles(t, n=100)[98] for t in taken]
    print(
        f"{name:13} {rows:4} rows: in the server {here:7.0f} (p99 {tails[0]:7.0f}), in a process {there:7.0f} "
        f"(p99 {tails[1]:7.0f}); +{there - here:.0f} us, {there / here:.2f} x"
    )


if __name__ == "__main__":
    main()
