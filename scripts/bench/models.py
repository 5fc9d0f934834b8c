"""The models: fitted once, saved once, and served from the same folder by everybody."""

from __future__ import annotations

import contextlib
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.models import infer_signature
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.bench.saved import Saved
from scripts.demo.features import build_features
from scripts.demo.machines import Histories, simulate
from scripts.demo.network import fit_network
from scripts.demo.train import TREE_TYPES

MACHINES, DAYS = 120, 20


class Models:
    """Fits and saves what is asked for, each once, in `home`."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._saved: dict[str, Saved] = {}

    def get(self, name: str) -> Saved:
        """A model by its name in the experiments."""
        if name not in self._saved:
            self._saved[name] = _MAKERS[name](self._home / name)
        return self._saved[name]

    def feast(self) -> Path:
        """A Feast repository with the last readings of the machines, made at the first call."""
        home = self._home / "feast"
        if not home.exists():
            with contextlib.redirect_stdout(io.StringIO()):  # Feast tells of its progress there
                _quietly(build_features, home, simulate(MACHINES, DAYS))
        return home


def _linear(folder: Path) -> Saved:
    histories = simulate(MACHINES, DAYS)
    return _sklearn(folder, make_pipeline(StandardScaler(), LogisticRegression(C=0.5)), histories.x, histories.y)


def _forest(folder: Path) -> Saved:
    histories = simulate(MACHINES, DAYS)
    forest = RandomForestClassifier(100, n_jobs=1, random_state=0)
    return _sklearn(folder, make_pipeline(StandardScaler(), forest), histories.x, histories.y)


def _wide(folder: Path) -> Saved:
    x, y = make_classification(2000, 20, n_informative=8, random_state=0)
    frame = pd.DataFrame(x, columns=[f"c{i}" for i in range(20)])
    return _sklearn(folder, make_pipeline(StandardScaler(), LogisticRegression(C=0.5)), frame, y)


def _sklearn(folder: Path, pipeline: Any, frame: pd.DataFrame, y: np.ndarray) -> Saved:
    """Fitted without names: a frame's would cost the other servers a warning per request."""
    pipeline.fit(frame.to_numpy(), y)
    for name, x in {"mlflow": frame, "tensor": frame.to_numpy()}.items():
        _quietly(
            mlflow.sklearn.save_model,
            pipeline,
            str(folder / name),
            serialization_format="skops",
            skops_trusted_types=TREE_TYPES,
            signature=infer_signature(x, np.asarray(y[:10])),
            pip_requirements=["scikit-learn", "skops"],
            metadata={"feast.feature_service": "machine_health"},
        )
    (folder / "model.pkl").write_bytes(pickle.dumps(pipeline))
    rows = _both(frame.to_numpy(), pipeline.predict(frame.to_numpy()))
    np.save(folder / "rows.npy", rows)
    return Saved(folder, tuple(frame.columns), rows, np.asarray(pipeline.predict(rows)))


def _network(folder: Path) -> Saved:
    histories: Histories = simulate(MACHINES, DAYS)
    x = histories.x.to_numpy(dtype=np.float32)
    network = fit_network(x, histories.y, epochs=5)
    rows = x[:32]
    with torch.inference_mode():
        answers = network(torch.from_numpy(rows)).numpy()
    _quietly(
        mlflow.pytorch.save_model,
        network,
        str(folder / "mlflow"),
        serialization_format="pt2",
        signature=infer_signature(rows[:2], answers[:2]),
        input_example=rows[:2],
        pip_requirements=["torch"],
    )
    torch.save(network, folder / "network.pt")
    return Saved(folder, tuple(histories.x.columns), rows, answers)


def _both(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """32 rows with answers of every kind among them."""
    rare = np.flatnonzero(labels != labels[0])[:8]
    return np.concatenate([x[: 32 - len(rare)], x[rare]])


def _quietly(save: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(*args, **kwargs)


_MAKERS: dict[str, Callable[[Path], Saved]] = {
    "linear": _linear, "wide": _wide, "forest": _forest, "network": _network,
}  # fmt: skip
