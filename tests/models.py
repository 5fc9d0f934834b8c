"""Tiny models, logged to a real registry in a moment each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, Schema
from sklearn.linear_model import LinearRegression

from registry.versions import ModelVersion

REQUIREMENTS = ["mlflow"]  # said, because finding out takes seconds per model


class Folder:
    """A source whose one version lies where it is."""

    digest, size = "", 0

    def __init__(self, path: Path) -> None:
        self.path = path

    def fetch(self, version: ModelVersion) -> Folder:
        return self

    def release(self) -> None:
        """Nothing holds it."""


def columns(*specs: tuple[str, str] | tuple[str, str, bool], output: str = "double") -> ModelSignature:
    """A signature of named columns: name, MLflow's type, and whether it is required."""
    inputs = [ColSpec(type=s[1], name=s[0], required=s[2] if len(s) == 3 else True) for s in specs]
    return ModelSignature(Schema(inputs), Schema([ColSpec(output)]))


def register(uri: str, name: str, log: Callable[..., Any], signature: ModelSignature) -> str:
    """Logs a model as the next version of `name` and returns its number; `log` is a flavour's, with its model bound."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("tests")
    with warnings.catch_warnings(), mlflow.start_run():
        warnings.simplefilter("ignore")
        log(name="model", signature=signature, pip_requirements=REQUIREMENTS, registered_model_name=name)
    return str(max(int(v.version) for v in MlflowClient(uri).search_model_versions(f"name='{name}'")))


def skops(estimator: Any, trusted: list[str] | None = None) -> Callable[..., Any]:
    """Logs an estimator without any pickle."""
    return partial(mlflow.sklearn.log_model, estimator, serialization_format="skops", skops_trusted_types=trusted)


def heavy(answer: float, megabytes: int) -> Callable[..., Any]:
    """Logs a linear model of one column with many useless megabytes, in a fitted attribute."""
    model = linear(answer)
    model.ballast_ = np.random.default_rng(0).random(megabytes * 2**17)
    return skops(model)


def puppet() -> Callable[..., Any]:
    """Logs a model that does what its one column `ms` says: sleeps for the longest of the batch, fails below zero."""

    class Puppet(mlflow.pyfunc.PythonModel):  # within a function, so that it is pickled by value
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
            import time

            if (model_input["ms"] < 0).any():
                raise ValueError(f"cannot sleep for {model_input['ms'].tolist()}")
            time.sleep(model_input["ms"].max() / 1000)
            return model_input["ms"] * 2

    return partial(mlflow.pyfunc.log_model, python_model=Puppet())


def linear(*weights: float) -> LinearRegression:
    """An estimator with exactly these weights."""
    model = LinearRegression().fit(np.zeros((2, len(weights))), np.zeros(2))
    model.coef_, model.intercept_ = np.array(weights), 0.0
    return model


def fiend() -> Callable[..., Any]:
    """Logs a model that does what the rows of its one column `do` say, and answers each with its length."""

    class Fiend(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            import ctypes
            import os
            import threading
            import time
            from pathlib import Path

            for what in model_input["do"]:
                if what == "crash":
                    ctypes.string_at(0)
                elif what == "exit":
                    os._exit(3)
                elif what == "linger":  # Python would wait for it at exit
                    threading.Thread(target=time.sleep, args=(600,)).start()
                elif what == "interrupt":
                    raise KeyboardInterrupt
                elif what == "raise":
                    raise ValueError("as told")
                elif what == "leak":
                    self.leak = [*getattr(self, "leak", []), b"x" * 50_000_000]
                elif what == "print":
                    os.write(1, b"told to print\n")
                elif what.startswith("say "):  # to whatever sockets there are
                    for fd in Path("/proc/self/fd").iterdir():
                        if fd.is_symlink() and "socket" in str(fd.readlink()):
                            os.write(int(fd.name), bytes.fromhex(what[4:]))
                while what == "hang":
                    time.sleep(0.01)
            return [len(what) for what in model_input["do"]]

    return partial(mlflow.pyfunc.log_model, python_model=Fiend())


def stuck() -> Callable[..., Any]:
    """Logs a model that never finishes loading."""

    class Stuck(mlflow.pyfunc.PythonModel):
        def load_context(self, context):  # type: ignore[no-untyped-def]
            import time

            time.sleep(3600)

        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return model_input["do"]

    return partial(mlflow.pyfunc.log_model, python_model=Stuck())


def with_helper(folder: Path, who: int, name: str = "helper") -> Callable[..., Any]:
    """Logs a model whose answer is a constant of its own helper module, `name`."""

    class Helped(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            from importlib import import_module

            return [import_module(name).WHO] * len(model_input)

    folder.mkdir(parents=True)
    (folder / f"{name}.py").write_text(f"WHO = {who}\n")
    return partial(mlflow.pyfunc.log_model, python_model=Helped(), code_paths=[str(folder / f"{name}.py")])
