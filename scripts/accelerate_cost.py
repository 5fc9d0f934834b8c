"""What acceleration is worth: the same fitted model in its library and compiled, call by call in turn, in one process.

python -m scripts.accelerate_cost
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.datasets import make_classification
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.mlmodel import Column, Signature
from serving.runtimes.accelerated.accelerate import proved
from serving.runtimes.accelerated.parity import Parity
from serving.runtimes.accelerated.runtime import AcceleratedRuntime
from serving.runtimes.base import Runtime, Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import compile_schema

WIDTH, ROUNDS = 10, 5
#: How often each side is called in a round: a round takes about a second.
CALLS = {"logistic regression": 1000, "forest of 100 trees": 100, "boosted histograms": 200}
WANT = Want.LABELS | Want.PROBABILITIES


def main() -> None:
    """Prints a table: medians in microseconds, the ratio of each round, and what the check at load took."""
    print(f"{'model':<22}{'rows':>5}{'library µs':>12}{'compiled µs':>13}  ratio (lowest to highest of the rounds)")
    for name, pair in _pairs().items():
        native, fast, example, parity = pair
        for rows in (1, 32):
            _print(name, rows, _rounds(native, fast, np.resize(example, (rows, WIDTH)), CALLS[name]))
        compared = f"{parity.rows} rows, {parity.at_thresholds} of them next to a threshold"
        print(f"    the check: {parity.seconds:.2f} s, {compared}; largest difference {parity.difference:.1e}")


def _pairs() -> dict[str, tuple[SklearnRuntime, AcceleratedRuntime, np.ndarray, Parity]]:
    x, y = make_classification(2000, WIDTH, n_informative=6, random_state=0)
    models = {
        "logistic regression": LogisticRegression(),
        "forest of 100 trees": RandomForestClassifier(100, random_state=0),
        "boosted histograms": HistGradientBoostingClassifier(random_state=0),
    }
    return {name: _pair(make_pipeline(StandardScaler(), model).fit(x, y), x[:8]) for name, model in models.items()}


def _pair(model: Any, example: np.ndarray) -> tuple[SklearnRuntime, AcceleratedRuntime, np.ndarray, Parity]:
    schema = compile_schema(Signature(tuple(Column(f"c{i}", "double") for i in range(WIDTH)), ()))
    native = SklearnRuntime(model, schema)
    fast, parity = proved(native, schema, (example,))
    return native, fast, example, parity


def _rounds(native: Runtime, fast: Runtime, x: np.ndarray, calls: int) -> list[tuple[float, float]]:
    """The median of each side, round by round."""
    found = []
    for _ in range(ROUNDS):
        pairs = [(_once(native, x), _once(fast, x)) for _ in range(calls)]
        slow, quick = (statistics.median(side) for side in zip(*pairs, strict=True))
        found.append((slow, quick))
    return found


def _once(runtime: Runtime, x: np.ndarray) -> float:
    began = time.perf_counter_ns()
    runtime.predict((x,), len(x), WANT)
    return (time.perf_counter_ns() - began) / 1000


def _print(name: str, rows: int, rounds: Sequence[tuple[float, float]]) -> None:
    slow, quick = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratios = sorted(a / b for a, b in rounds)
    middle = statistics.median(ratios)
    print(f"{name:<22}{rows:>5}{slow:>12.1f}{quick:>13.1f}  {middle:.0f} ({ratios[0]:.0f} to {ratios[-1]:.0f})")


if __name__ == "__main__":
    main()
