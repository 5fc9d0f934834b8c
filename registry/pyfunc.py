"""MLflow's generic flavour: whatever was logged, behind one `predict`; and the code that versions bring."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlflow.pyfunc


def load_predict(path: Path) -> Callable[[Any], Any]:
    """The `predict` of the model in a folder. It takes a DataFrame, an array or a dict of arrays by tensor name."""
    model = mlflow.pyfunc.load_model(str(path), suppress_warnings=True)
    return lambda data: model.predict(data)


def add_code(path: Path, flavor: Mapping[str, Any]) -> None:
    """Puts the `code_paths` of a flavour on the import path, as MLflow does for its own loaders."""
    folder = str(path / str(flavor.get("code")))
    if flavor.get("code") and folder not in sys.path:
        sys.path.insert(0, folder)
