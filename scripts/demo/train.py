"""Trains the demonstration's models and registers them as versions of `predictive_maintenance`.

Version 1 is a scikit-learn pipeline (skops), version 2 a tree ensemble (skops with its tree types), version 3 a PyTorch
network (pt2), if PyTorch is installed. `champion` and the stage Production point at version 1, `challenger` and Staging at
the latest. Every version names the Feast service of its features by tag; the network also says by tag what its output means.
"""

from __future__ import annotations

import argparse
import importlib.util
import warnings
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature, infer_signature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.demo.feature_repo.definitions import machine_health
from scripts.demo.features import build_features
from scripts.demo.machines import COLUMNS, EXAMPLE, Histories, simulate

MODEL = "predictive_maintenance"
TREE_TYPES = ["sklearn.tree._tree.Tree"]


def train(tracking_uri: str, home: Path, machines: int = 400, days: int = 60, redis: str | None = None) -> None:
    """Trains on three quarters of the machines, measures on the rest, registers, and sets tags, aliases and stages.

    The last readings of the same machines go to a Feast repository in `home`; its online store is a file there, or Redis.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment(MODEL)
    histories = simulate(machines, days)
    build_features(home, histories, redis)  # before an alias leads a server here
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.5))
    register_sklearn("logistic regression", pipeline, histories, {"C": 0.5})
    forest = RandomForestClassifier(60, min_samples_leaf=10, n_jobs=1, random_state=0)
    register_sklearn("random forest", forest, histories, {"n_estimators": 60, "min_samples_leaf": 10})
    if importlib.util.find_spec("torch") is not None:
        register_network("network", histories)
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
            pip_requirements=requirements("scikit-learn", "skops"),
        )


def requirements(*packages: str) -> list[str]:
    """The installed versions. Left to itself MLflow loads each model in a process of its own to find out."""
    return [f"{package}=={installed(package)}" for package in ("mlflow", *packages)]


def register_network(kind: str, histories: Histories) -> None:
    """Trains the network and logs it as `pt2`, which holds weights and a graph, and no pickled code."""
    import torch

    from scripts.demo.network import fit_network

    fit, test = split(histories)
    x = histories.x.to_numpy(dtype=np.float32)
    network = fit_network(x[fit], histories.y[fit])
    with torch.inference_mode():
        probability = torch.sigmoid(network(torch.from_numpy(x[test])))[:, 0].numpy()
    examples = np.array([EXAMPLE] * 2, dtype=np.float32)
    with mlflow.start_run(run_name=kind):
        mlflow.log_params({"kind": kind, "epochs": 60})
        log_metrics(histories.y[test], probability)
        info = mlflow.pytorch.log_model(
            network,
            name="model",
            serialization_format="pt2",
            signature=infer_signature(examples, np.zeros((2, 1), dtype=np.float32)),
            input_example=examples,
            pip_requirements=requirements("torch"),
        )
    # A pt2 program is logged with a tensor signature; named columns let clients send what they send to the other versions.
    columns = Schema([ColSpec("double", name) for name in COLUMNS])
    mlflow.models.set_signature(info.model_uri, ModelSignature(columns, Schema([ColSpec("float")])))
    mlflow.register_model(info.model_uri, MODEL)


def log_metrics(truth: np.ndarray, probability: np.ndarray) -> None:
    """Logs and prints the area under the ROC curve (higher is better) and the Brier score (lower is better)."""
    metrics = {
        "auc": float(roc_auc_score(truth, probability)),
        "brier": float(brier_score_loss(truth, probability)),
    }
    mlflow.log_metrics(metrics)
    print("   ", ", ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)


def describe(client: MlflowClient) -> None:
    """Tags, aliases and stages as a team would set them."""
    versions = sorted(found.version for found in client.search_model_versions(f"name = '{MODEL}'"))
    for version in versions:
        client.set_model_version_tag(MODEL, version, "feast.feature_service", machine_health.name)
    if len(versions) == 3:
        client.set_model_version_tag(MODEL, "3", "headway.task", "classification")
        client.set_model_version_tag(MODEL, "3", "headway.activation", "sigmoid")
    client.set_registered_model_alias(MODEL, "challenger", versions[-1])
    client.transition_model_version_stage(MODEL, "1", "Production")
    client.transition_model_version_stage(MODEL, versions[-1], "Staging")
    client.set_registered_model_alias(MODEL, "champion", "1")  # the last: it says that all of this is there


def is_trained(tracking_uri: str) -> bool:
    """Whether the registry has a champion already. Raises MlflowException if it cannot be asked."""
    try:
        MlflowClient(tracking_uri).get_model_version_by_alias(MODEL, "champion")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
    return True


def main() -> None:
    """Trains against `--tracking-uri`, with the Feast repository in `--feature-repo`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--tracking-uri", required=True)
    parser.add_argument("--feature-repo", required=True, type=Path)
    parser.add_argument(
        "--redis", metavar="HOST:PORT", help="Feast's online store; without it a file in the repository"
    )
    parser.add_argument("--once", action="store_true", help="do nothing if the registry has a champion")
    args = parser.parse_args()
    if args.once and is_trained(args.tracking_uri):
        print(f"{MODEL} is registered already")
    else:
        train(args.tracking_uri, args.feature_repo, redis=args.redis)


if __name__ == "__main__":
    main()
