"""What is imported for a model does not depend on what else is installed."""

import subprocess
import sys

from tests.servers import ROOT

HEAVY = "{'torch', 'dask', 'kserve', 'mlflow', 'numpy', 'grpc', 'sklearn', 'pandas', 'fastapi', 'feast'}"


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_skops_comes_without_the_libraries_that_scikit_learn_has_adapters_for() -> None:
    """All its estimators are known all the same, and no adapter stays marked as absent."""
    code = """
import sys
from serving.slim import skops_io
io = skops_io()
from skops.io._trusted_types import SKLEARN_ESTIMATOR_TYPE_NAMES as names
adapters = [name for name in sys.modules if "array_api_compat" in name and sys.modules[name] is None]
print(sorted({"torch", "dask", "cupy", "pytest", "rich"} & set(sys.modules)), adapters, "sklearn.svm._classes.SVC" in names)
import pytest
"""
    assert python(code) == "[] [] True"


def test_the_supervisor_imports_no_library_of_models_or_servers() -> None:
    """What it does not have cannot bring it down."""
    assert python(f"import sys, serving.workers.root; print(sorted({HEAVY} & set(sys.modules)))") == "[]"
