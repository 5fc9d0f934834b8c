"""MLflow's generic flavour: whatever was logged, behind one `predict`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pyfunc


def load_predict(path: Path) -> Callable[[Any], Any]:
    """The `predict` of the model in a folder. It takes a DataFrame, an array or a dict of arrays by tensor name."""
    model = mlflow.pyfunc.load_model(str(path), suppress_warnings=True)
    return lambda data: model.predict(data)
