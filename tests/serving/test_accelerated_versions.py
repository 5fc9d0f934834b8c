"""Acceleration of versions that the server loads: the operator's word, the log, a process, the trust gate, the extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from sklearn import ensemble, linear_model, naive_bayes

from registry.errors import InvalidModel
from registry.versions import ModelVersion
from serving.configuration import ModelOptions
from serving.loading import Loaded, Loader, warm
from tests.accelerating import BOTH, NAMES, X, Y, fitted
from tests.models import Folder, columns


def save(path: Path, model: Any, **more: Any) -> Folder:
    more = {"serialization_format": "skops", "skops_trusted_types": ["sklearn.tree._tree.Tree"]} | more
    signature = columns(*[(name, "double") for name in NAMES])
    mlflow.sklearn.save_model(model, str(path / "model"), signature=signature, pip_requirements=["mlflow"], **more)
    return Folder(path / "model")


def load(folder: Folder, **options: Any) -> Loaded:
    loaded = Loader(folder, ModelOptions(**options), None).load(ModelVersion("m", "3"))
    warm(loaded)
    return loaded


def test_a_version_is_accelerated_unless_the_operator_says_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the engine."""
    caplog.set_level("INFO", "headway.lifecycle")
    folder = save(tmp_path, fitted(ensemble.RandomForestClassifier, "standard", 2))
    assert load(folder).runtime.engine.name == "onnxruntime"
    assert load(folder, accelerate="off").runtime.engine.name == "scikit-learn"
    said = [record.engine for record in caplog.records if record.message == "runtime loaded"]  # type: ignore[attr-defined]
    assert said == ["onnxruntime", "scikit-learn"]


def test_the_log_says_why_a_version_is_not_accelerated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a clause."""
    caplog.set_level("INFO", "headway.lifecycle")
    load(save(tmp_path, naive_bayes.GaussianNB().fit(X, Y)))
    record = next(record for record in caplog.records if record.message == "runtime loaded")
    assert record.not_accelerated == "GaussianNB is not among the models that are compiled"  # type: ignore[attr-defined]


def test_a_version_in_a_process_of_its_own_is_accelerated_there(tmp_path: Path) -> None:
    """And gives the same answers."""
    model = fitted(ensemble.RandomForestClassifier, "standard", 2)
    loaded = load(save(tmp_path, model), isolation="process")
    try:
        outputs = loaded.runtime.predict((X,), len(X), BOTH)
        assert loaded.runtime.engine.name == "onnxruntime"
        assert np.array_equal(outputs.probabilities, model.predict_proba(X))
    finally:
        loaded.dispose()


def test_the_trust_gate_stands_before_it(tmp_path: Path) -> None:
    """A pickle of a perfectly linear model still needs allow_pickle."""
    folder = save(tmp_path, fitted(linear_model.LogisticRegression, "standard", 2), serialization_format="cloudpickle")
    with pytest.raises(InvalidModel, match="set allow_pickle"):
        load(folder)
    assert load(folder, allow_pickle=True).runtime.engine.name == "arrays"


SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(["onnxruntime", "onnx"]) if {hide} else {{}})
import numpy as np
from sklearn import linear_model, tree
from registry.mlmodel import Signature, Tensor
from serving.schema import compile_schema
from serving.runtimes.sklearn import SklearnRuntime
from serving.runtimes.accelerated.accelerate import accelerated
x = np.random.default_rng(0).normal(size=(50, 2))
schema = compile_schema(Signature((Tensor(None, "float64", (-1, 2)),), ()))
for model in ({models}):
    runtime = accelerated(SklearnRuntime(model.fit(x, x[:, 0] > 0), schema), schema, (x[:1],), 120.0)
    print(runtime.engine.name, runtime.engine.why, sys.modules.get("onnxruntime") is not None)
"""


def run(hide: bool, models: str) -> list[str]:
    text = SCRIPT.format(hide=hide, models=models)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.splitlines()


def test_onnx_runtime_is_imported_only_for_trees() -> None:
    """A linear model does without."""
    models = "linear_model.LogisticRegression(), tree.DecisionTreeClassifier()"
    assert run(False, models) == ["arrays None False", "onnxruntime None True"]


def test_without_the_extra_the_library_serves_and_says_which_to_install() -> None:
    """Nothing but speed depends on it."""
    (line,) = run(True, "tree.DecisionTreeClassifier(),")
    assert line.endswith("is not installed: install the extra accelerate False")
