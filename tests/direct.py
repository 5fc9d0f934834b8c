"""The models called directly in Python, with no server between: what every protocol must answer."""

import mlflow
import numpy as np
import torch

MODEL = "predictive_maintenance"


def probabilities_of(uri: str, version: str, rows: list[list[float]] | np.ndarray) -> np.ndarray:
    """Probabilities `[n, 2]` of a version of the demonstration, computed by its own library."""
    mlflow.set_tracking_uri(uri)
    matrix = np.asarray(rows, dtype=np.float64)
    if version in ("1", "2"):
        return np.asarray(mlflow.sklearn.load_model(f"models:/{MODEL}/{version}").predict_proba(matrix))
    network = mlflow.pytorch.load_model(f"models:/{MODEL}/{version}")
    network = network.module() if hasattr(network, "module") else network
    with torch.inference_mode():
        positive = torch.sigmoid(network(torch.tensor(matrix, dtype=torch.float32)))[:, 0].double().numpy()
    return np.column_stack([1 - positive, positive])
