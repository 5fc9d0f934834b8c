"""The model's calls, as we make them: labels and probabilities, by the library, by the compiled model, or not at all.

python -m scripts.bench.servers.calls FOLDER library|compiled ROWS SECONDS

prints, as JSON, how often one process calls the model with so many rows, and how long a call takes.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from registry.mlmodel import Column, Signature
from scripts.bench.figures import quantile
from serving.runtimes.accelerated.runtime import compiled
from serving.runtimes.base import Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import compile_schema

#: Rows `[n, k]` → labels `[n]`, probabilities `[n, classes]`.
Calls = Callable[[np.ndarray], tuple[Any, Any]]


def calls_of(folder: Path, how: str) -> Calls:
    """`library`, `compiled`, or `nothing`: constants of the right shape."""
    estimator = pickle.loads((folder / "model.pkl").read_bytes())
    if how == "library":
        return lambda x: (estimator.predict(x), estimator.predict_proba(x))
    if how == "nothing":
        return lambda x: (np.zeros(len(x), dtype=np.int64), np.zeros((len(x), 2)))
    columns = tuple(Column(f"c{i}", "double") for i in range(estimator.n_features_in_))
    schema = compile_schema(Signature(columns, ()))
    runtime = compiled(SklearnRuntime(estimator, schema), schema)

    def predict(x: np.ndarray) -> tuple[Any, Any]:
        outputs = runtime.predict((x,), len(x), Want.LABELS | Want.PROBABILITIES)
        return outputs.labels, outputs.probabilities

    return predict


def measure(predict: Calls, x: np.ndarray, seconds: float) -> dict[str, float]:
    """Calls per second, CPU microseconds and latencies in milliseconds."""
    taken: list[float] = []
    cpu, began = time.process_time(), time.perf_counter()
    last = began
    while last - began < seconds:
        predict(x)
        now = time.perf_counter()
        taken.append(now - last)
        last = now
    cpu, count = time.process_time() - cpu, len(taken)
    taken.sort()
    latencies = {f"p{share}": 1000 * quantile(taken, share / 100) for share in (50, 95, 99)}
    return {"rate": count / (last - began), "cpu": cpu / count * 1e6, **latencies}


def main() -> None:
    """Prints one measurement."""
    folder, how, rows, seconds = sys.argv[1:5]
    predict = calls_of(Path(folder), how)
    kept = np.load(Path(folder) / "rows.npy")
    x = np.resize(kept, (int(rows), kept.shape[1]))
    measure(predict, x, 0.2)
    print(json.dumps(measure(predict, x, float(seconds))))


if __name__ == "__main__":
    main()
