"""What a hit of the response cache costs beside the model, by its library and accelerated: the same rows, in turn.

python -m scripts.cache_cost
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serving.response_cache import CacheLimits, Store, key_of
from serving.runtimes.accelerated.compiling import compile_estimator
from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.base import Outputs, Want

WIDTH, CALLS = 10, 300
WANT = Want.LABELS | Want.PROBABILITIES


def main() -> None:
    """Prints a table: medians in microseconds."""
    random = np.random.default_rng(0)
    x = random.normal(size=(1000, WIDTH))
    y = x[:, 0] > 0
    linear = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y)
    forest = RandomForestClassifier(100, random_state=0).fit(x, y)
    print(
        "| rows | hit | linear pipeline | accelerated | forest of 100 trees | accelerated |\n|---|---|---|---|---|---|"
    )
    for rows in (1, 32, 1000):
        store, matrix = Store(CacheLimits(2**24), lambda reason: None), random.normal(size=(rows, WIDTH))
        outputs = Outputs(rows, np.zeros(rows, np.int64), np.zeros((rows, 2)))
        store.keep(_key(matrix), outputs, 0.0)
        assert store.get(_key(matrix), 0.0) is outputs
        models = [call for model in (linear, forest) for call in (_library(model, matrix), _accelerated(model, matrix))]
        calls = [_hit(store, matrix), *models]
        print(f"| {rows} |", " | ".join(f"{t:.0f}" for t in _medians(calls)), "|")


def _key(matrix: np.ndarray) -> bytes:
    key = key_of((matrix,), WANT)
    assert key is not None
    return key


def _hit(store: Store, matrix: np.ndarray) -> Callable[[], object]:
    return lambda: store.get(_key(matrix), 0.0)


def _library(model: Any, matrix: np.ndarray) -> Callable[[], object]:
    return lambda: model.predict_proba(matrix)


def _accelerated(model: Any, matrix: np.ndarray) -> Callable[[], object]:
    program = compile_estimator(model, Layout(matrix.dtype, block=True))
    return lambda: program.head.answer(program.prepare(matrix), WANT)


def _medians(calls: list[Callable[[], object]]) -> list[float]:
    """The median of each in microseconds; they take turns, so that what else the machine does hits all alike."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(CALLS):
        for call, times in zip(calls, taken, strict=True):
            began = time.perf_counter()
            call()
            times.append(1e6 * (time.perf_counter() - began))
    return [statistics.median(times) for times in taken]


if __name__ == "__main__":
    main()
