"""Trains the demonstration's models and registers them as versions of `predictive_maintenance`.

Version 1 is a scikit-learn pipeline (skops), version 2 a tree ensemble (skops with its tree types).
`champion` and the stage Production point at version 1; `challenger` and Staging at version 2.
"""

from __future__ import annotations

import argparse
import warnings
from typing import Any

import mlflow
import numpy as np
from mlflow.models import infer_signature
from mlflow.tracking import MlflowClient
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.demo.machines import COLUMNS, EXAMPLE, Histories, simulate

MODEL = "predictive_maintenance"
TREE_TYPES = ["sklearn.tree._tree.Tree"]


def train(tracking_uri: str, machines: int = 400, days: int = 60) -> None:
    """Trains on three quarters of the machines, measures on the rest, registers, and sets tags, aliases and stages."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(MODEL)
    histories = simulate(machines, days)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.5))
    register_sklearn("logistic regression", pipeline, histories, {"C": 0.5})
    forest = RandomForestClassifier(60, min_samples_leaf=10, n_jobs=1, random_state=0)
    register_sklearn("random forest", forest, histories, {"n_estimators": 60, "min_samples_leaf": 10})
    describe(MlflowClient(tracking_uri))


def split(histories: Histories) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the training and the test rows: whole machines, so that no history leaks."""
    test = (histories.frame["machine_id"] % 4 == 0).to_numpy()
    return ~test, test


def register_sklearn(kind: str, estimator: Any, histories: Histories, params: dict[str, Any]) -> None:
    """Fits, measures and logs one estimator as the next version."""
    fit, test = split(histories)
    estimator.fit(histories.x[fit], histories.y[fit])
    probability = estimator.predict_proba(histories.x[test])[:, 1]
    example = histories.x[:1].assign(**dict(zip(COLUMNS, EXAMPLE, strict=True)))
    with mlflow.start_run(run_name=kind):
        mlflow.log_params({"kind": kind, **params})
        log_metrics(histories.y[test], probability)
        mlflow.sklearn.log_model(
            estimator,
            name="model",
            serialization_format="skops",
            skops_trusted_types=TREE_TYPES,
            signature=infer_signature(histories.x, histories.y[:10]),
            input_example=example,
            registered_model_name=MODEL,
        )


def log_metrics(truth: np.ndarray, probability: np.ndarray) -> None:
    """Logs and prints the area under the ROC curve (higher is better) and the Brier score (lower is better)."""
    metrics = {
        "auc": float(roc_auc_score(truth, probability)),
        "brier": float(brier_score_loss(truth, probability)),
    }
    mlflow.log_metrics(metrics)
    print("   ", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()))


def describe(client: MlflowClient) -> None:
    """Tags, aliases and stages as a team would set them."""
    client.set_registered_model_alias(MODEL, "champion", "1")
    client.set_registered_model_alias(MODEL, "challenger", "2")
    client.transition_model_version_stage(MODEL, "1", "Production")
    client.transition_model_version_stage(MODEL, "2", "Staging")


def main() -> None:
    """Trains against `--tracking-uri`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tracking-uri", required=True)
    train(parser.parse_args().tracking_uri)


if __name__ == "__main__":
    main()
