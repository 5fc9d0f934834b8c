"""`headway accelerate --check` says whether a version is computed faster and answers the same; the server's status agrees."""

import json
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serving.cli import main
from tests.crafted import Spot
from tests.models import columns, register, skops
from tests.servers import MlflowServer, Server

AB = columns(("a", "double"), ("b", "double"))
X = np.random.default_rng(0).normal(size=(200, 2))
LOGISTIC = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, X[:, 0] > 0)


@pytest.fixture
def spot(tmp_path: Path) -> Spot:
    return Spot(tmp_path)


def test_parity_that_holds_exits_0_with_the_speed(spot: Spot, capfd: pytest.CaptureFixture[str]) -> None:
    """At 1 and 32 rows, in both engines."""
    spot.save(mlflow.sklearn, LOGISTIC, serialization_format="skops", signature=AB)
    assert main(["accelerate", "--check", str(spot.model), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["parity"], found["engine"]) == (True, "arrays")
    assert found["rows"] > found["at_thresholds"] > 0
    assert found["largest_difference"] <= 1e-6
    assert [times["rows"] for times in found["microseconds"]] == [1, 32]
    assert main(["accelerate", "--check", str(spot.model)]) == 0
    assert "parity     yes" in capfd.readouterr().out


def test_a_version_that_is_not_compiled_exits_1_and_says_why(spot: Spot, capfd: pytest.CaptureFixture[str]) -> None:
    """So does one that the trust gate refuses."""
    spot.save(mlflow.sklearn, GaussianNB().fit(X, X[:, 0] > 0), serialization_format="skops", signature=AB)
    assert main(["accelerate", "--check", str(spot.model)]) == 1
    assert "- GaussianNB is not among the models that are compiled" in capfd.readouterr().out


def test_a_version_that_would_not_load_is_not_tried(spot: Spot, capfd: pytest.CaptureFixture[str]) -> None:
    """The trust gate stands before acceleration here, too."""
    spot.save(mlflow.sklearn, LOGISTIC, serialization_format="cloudpickle", signature=AB)
    assert main(["accelerate", "--check", str(spot.model)]) == 1
    assert "set allow_pickle" in capfd.readouterr().err


@pytest.mark.e2e
def test_the_status_names_the_engine(shared: MlflowServer, headway: Callable[..., Server], tmp_path: Path) -> None:
    """Of what serves and of every version; `accelerate: off` leaves the library, and both answer alike."""
    forest = RandomForestClassifier(20, random_state=0).fit(X, X[:, 0] > 0)
    register(shared.uri, "engines", skops(forest, ["sklearn.tree._tree.Tree"]), AB)
    entry = {"uri": "models:/engines/1"}
    models = [{"name": "fast", **entry}, {"name": "plain", **entry, "accelerate": "off"}]
    (tmp_path / "headway.yaml").write_text(json.dumps({"models": models}))
    server = headway("--config", str(tmp_path / "headway.yaml"), MLFLOW_TRACKING_URI=shared.uri)
    server.until_ready()
    for name, engine in (("fast", "onnxruntime"), ("plain", "scikit-learn")):
        status = server.get(f"/v1/models/{name}").json()
        assert (status["engine"], status["versions"][0]["engine"]) == (engine, engine)
    answers = [
        server.post(f"/v1/models/{name}:predict", {"instances": X.tolist()}).json() for name in ("fast", "plain")
    ]
    assert answers[0]["predictions"] == answers[1]["predictions"]
    assert answers[0]["probabilities"] == answers[1]["probabilities"]
