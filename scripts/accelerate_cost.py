"""What acceleration is worth: the same fitted model in its library and compiled, call by call in turn, in one process.

python -m scripts.accelerate_cost
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from registry.mlmodel import Column, Signature
from serving.runtimes.accelerated.accelerate import proved
from serving.runtimes.accelerated.parity import Parity
from serving.runtimes.accelerated.runtime import AcceleratedRuntime
from serving.runtimes.base import Runtime, Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import InputSchema, compile_schema

WIDTH, ROUNDS = 10, 5
#: How often each side is called in a round: a round takes about a second.
CALLS = {
    "logistic regression": 1000, "forest of 100 trees": 100, "boosted histograms": 200, "support vectors": 500,
    "five neighbours": 500, "categories": 150,
}  # fmt: skip
WANT = Want.LABELS | Want.PROBABILITIES
Pair = tuple[SklearnRuntime, AcceleratedRuntime, tuple[np.ndarray, ...], Parity]


def main() -> None:
    """Prints a table: medians in microseconds, the ratio of each round, and what the check at load took."""
    print(f"{'model':<22}{'rows':>5}{'library µs':>12}{'compiled µs':>13}  ratio (lowest to highest of the rounds)")
    for name, pair in _pairs().items():
        native, fast, example, parity = pair
        for rows in (1, 32):
            arrays = tuple(np.resize(array, (rows, *array.shape[1:])) for array in example)
            _print(name, rows, _rounds(native, fast, arrays, rows, CALLS[name]))
        compared = f"{parity.rows} rows, {parity.at_thresholds} of them next to a threshold"
        print(f"    the check: {parity.seconds:.2f} s, {compared}; largest difference {parity.difference:.1e}")


def _pairs() -> dict[str, Pair]:
    x, y = make_classification(2000, WIDTH, n_informative=6, random_state=0)
    schema = compile_schema(Signature(tuple(Column(f"c{i}", "double") for i in range(WIDTH)), ()))
    models = {
        "logistic regression": LogisticRegression(),
        "forest of 100 trees": RandomForestClassifier(100, random_state=0),
        "boosted histograms": HistGradientBoostingClassifier(random_state=0),
        "support vectors": SVC(),
        "five neighbours": KNeighborsClassifier(),
    }
    fitted = {name: make_pipeline(StandardScaler(), model).fit(x, y) for name, model in models.items()}
    return {**{name: _pair(model, schema, (x[:8],)) for name, model in fitted.items()}, "categories": _categories(x, y)}


def _categories(x: np.ndarray, y: np.ndarray) -> Pair:
    """Four numbers that may be missing, two columns of words, one-hot, and a logistic regression."""
    words = [np.array([f"{name}{int(v)}" for v in np.clip(x[:, i] + 4, 0, 7)], object) for i, name in enumerate("pq")]
    numbers = {f"c{i}": x[:, i] for i in range(2, 6)}
    frame = pd.DataFrame({**numbers, "p": words[0], "q": words[1]})
    before = make_column_transformer(
        (make_pipeline(SimpleImputer(), StandardScaler()), list(numbers)),
        (OneHotEncoder(handle_unknown="ignore"), ["p", "q"]),
    )
    kinds = [*((name, "double") for name in numbers), ("p", "string"), ("q", "string")]
    schema = compile_schema(Signature(tuple(Column(name, kind) for name, kind in kinds), ()))
    example = tuple(frame[name].to_numpy()[:8] for name in frame)
    return _pair(make_pipeline(before, LogisticRegression()).fit(frame, y), schema, example)


def _pair(model: Any, schema: InputSchema, example: tuple[np.ndarray, ...]) -> Pair:
    native = SklearnRuntime(model, schema)
    fast, parity = proved(native, schema, example)
    return native, fast, example, parity


def _rounds(
    native: Runtime, fast: Runtime, arrays: tuple[np.ndarray, ...], rows: int, calls: int
) -> list[tuple[float, float]]:
    """The median of each side, round by round."""
    found = []
    for _ in range(ROUNDS):
        pairs = [(_once(native, arrays, rows), _once(fast, arrays, rows)) for _ in range(calls)]
        slow, quick = (statistics.median(side) for side in zip(*pairs, strict=True))
        found.append((slow, quick))
    return found


def _once(runtime: Runtime, arrays: tuple[np.ndarray, ...], rows: int) -> float:
    began = time.perf_counter_ns()
    runtime.predict(arrays, rows, WANT)
    return (time.perf_counter_ns() - began) / 1000


def _print(name: str, rows: int, rounds: Sequence[tuple[float, float]]) -> None:
    slow, quick = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = sorted(a / b for a, b in rounds)
    middle = statistics.median(ratios)
    print(f"{name:<22}{rows:>5}{slow:>12.1f}{quick:>13.1f}  {middle:.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})")


if __name__ == "__main__":
    main()
