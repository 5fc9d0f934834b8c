"""Trust fails closed: what could run code is refused, and each refusal is proved by a file that an attack would have written.

Every attack is real: with the operator's permission, or through the library itself, the same file is written.
"""

import importlib
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
import skops.io
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from registry.errors import InvalidModel
from registry.versions import ModelVersion
from serving.configuration import ModelOptions
from serving.loading import Loader
from tests.crafted import SUMS, Bomb, Spot, answer, estimator, load, rewrite
from tests.models import Folder

SUM = "class Sum(mlflow.pyfunc.PythonModel):\n    def predict(self, context, model_input, params=None):\n        return model_input.sum(axis=1)\n"


def pickled_sklearn(spot: Spot) -> None:
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")


def cloudpickled_sklearn(spot: Spot) -> None:
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="cloudpickle")


def sklearn_from_before_formats_were_named(spot: Spot) -> None:
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")
    rewrite(spot.model, lambda document: document["flavors"]["sklearn"].pop("serialization_format"))


def pickled_sklearn_behind_the_generic_flavour(spot: Spot) -> None:
    pickled_sklearn(spot)
    rewrite(spot.model, lambda document: document["flavors"].pop("sklearn"))


def python_model(spot: Spot) -> None:
    class Sum(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads hints
            return model_input.sum(axis=1)

    model = Sum()
    model.note = Bomb(spot.canary)
    spot.save(mlflow.pyfunc, python_model=model)


def model_from_code(spot: Spot) -> None:
    body = f"import mlflow\n{SUM}mlflow.models.set_model(Sum())\n"
    spot.save(mlflow.pyfunc, python_model=spot.code("planted_model.py", body))


def code_paths_beside_an_honest_estimator(spot: Spot) -> None:
    module = spot.code("planted_estimator.py", "from sklearn.linear_model import LinearRegression\n"
                       "class Mine(LinearRegression):\n    pass\n")  # fmt: skip
    sys.path.insert(0, str(spot.folder))
    model = importlib.import_module("planted_estimator").Mine().fit(np.zeros((2, 2)), np.zeros(2))
    model.coef_, model.intercept_ = np.array([1.0, 1.0]), 0.0
    spot.save(mlflow.sklearn, model, serialization_format="pickle", code_paths=[module])
    sys.path.remove(str(spot.folder))
    del sys.modules["planted_estimator"]


def foreign_loader(spot: Spot) -> None:
    body = "class Sum:\n    def predict(self, x):\n        return x.sum(axis=1)\ndef _load_pyfunc(path):\n    return Sum()\n"
    file = spot.code("planted_loader.py", body)
    spot.save(mlflow.pyfunc, loader_module="planted_loader", code_paths=[file])


def foreign_loader_without_code(spot: Spot) -> None:
    foreign_loader(spot)
    shutil.copy(spot.model / "code" / "planted_loader.py", spot.folder)
    sys.path.insert(0, str(spot.folder))  # as if it were installed beside the server
    rewrite(spot.model, lambda document: document["flavors"]["python_function"].pop("code"))


def pickled_torch(spot: Spot) -> None:
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    network.note = Bomb(spot.canary)
    spot.save(mlflow.pytorch, network, serialization_format="pickle")


ATTACKS = [
    (pickled_sklearn, "allow_pickle"),
    (cloudpickled_sklearn, "allow_pickle"),
    (sklearn_from_before_formats_were_named, "allow_pickle"),
    (pickled_sklearn_behind_the_generic_flavour, "allow_pickle"),
    (pickled_torch, "allow_pickle"),
    (python_model, "allow_code"),
    (model_from_code, "allow_code"),
    (code_paths_beside_an_honest_estimator, "allow_code"),
    (foreign_loader, "allow_code"),
    (foreign_loader_without_code, "allow_code"),
]


@pytest.mark.parametrize(("attack", "setting"), ATTACKS, ids=lambda v: getattr(v, "__name__", v))
def test_code_is_refused_unless_the_operator_allows_it(
    spot: Spot, attack: Callable[[Spot], None], setting: str
) -> None:
    """The message names the setting; with the setting the version loads, answers right, and its code has run."""
    attack(spot)
    with pytest.raises(InvalidModel, match=f"set {setting}"):
        load(spot.model)
    if setting == "allow_code":
        with pytest.raises(InvalidModel, match="set allow_code"):
            load(spot.model, allow_pickle=True)
    assert not spot.canary.exists()
    assert answer(load(spot.model, **{setting: True})) == SUMS
    assert spot.canary.exists()


@pytest.mark.parametrize("attack", [a for a, setting in ATTACKS if setting == "allow_pickle"], ids=lambda a: a.__name__)
def test_allow_code_includes_allow_pickle(spot: Spot, attack: Callable[[Spot], None]) -> None:
    """Who trusts a version's code trusts its pickles."""
    attack(spot)
    assert answer(load(spot.model, allow_code=True)) == SUMS


def test_the_version_cannot_allow_itself_anything(spot: Spot) -> None:
    """Neither a tag nor the metadata of a version speaks of trust."""
    pickled_sklearn(spot)
    words = {f"{prefix}{word}": "true" for prefix in ("", "headway.") for word in ("allow_pickle", "allow_code")}
    rewrite(spot.model, lambda document: document.update(metadata=words))
    version = ModelVersion("m", "1", configuration=tuple(words.items()))
    with pytest.raises(InvalidModel, match="set allow_pickle"):
        Loader(Folder(spot.model), ModelOptions(), None).load(version)
    assert not spot.canary.exists()


@pytest.mark.parametrize("allowed", [False, True])
def test_a_loader_module_of_the_standard_library_is_not_imported(spot: Spot, allowed: bool) -> None:
    """Importing is enough for an attack: `antigravity` starts what $BROWSER says."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    loader = {"python_function": {"loader_module": "antigravity"}}
    rewrite(spot.model, lambda document: document.update(flavors=loader))
    browser = spot.folder / "browser"
    browser.write_text(f"#!/bin/sh\ntouch {spot.canary}\n")
    browser.chmod(0o755)
    program = f"from tests.crafted import Path, load; load(Path({str(spot.model)!r}), allow_code={allowed})"
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "BROWSER": str(browser)},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert spot.canary.exists() is allowed
    assert ("'antigravity' is not MLflow's own: set allow_code" in done.stderr) is not allowed


def test_an_mlmodel_file_that_calls_a_pickle_skops_is_refused(spot: Spot) -> None:
    """What the file is decides, not what is said of it."""
    pickled_sklearn(spot)
    rewrite(spot.model, lambda document: document["flavors"]["sklearn"].update(serialization_format="skops"))
    with pytest.raises(InvalidModel, match="cannot be read"):
        load(spot.model)
    assert not spot.canary.exists()


@pytest.mark.parametrize("name", ["../outside.skops", "/etc/passwd", "", "nothing", "link"])
def test_a_model_file_outside_of_the_version_is_refused(spot: Spot, name: str) -> None:
    """Upwards, absolute, absent, or through a link."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    shutil.copy(spot.model / "model.skops", spot.folder / "outside.skops")
    (spot.model / "link").symlink_to("/etc/passwd")
    rewrite(spot.model, lambda document: document["flavors"]["sklearn"].update(pickled_model=name))
    with pytest.raises(InvalidModel, match="not in the version's folder"):
        load(spot.model)


def test_an_mlmodel_file_with_a_python_tag_is_refused(spot: Spot) -> None:
    """YAML is read as data."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    (spot.model / "MLmodel").write_text(f"flavors: !!python/object/apply:os.system ['touch {spot.canary}']\n")
    with pytest.raises(InvalidModel, match="cannot be understood"):
        load(spot.model)
    assert not spot.canary.exists()


def test_a_skops_file_with_foreign_types_is_refused_whatever_it_says_of_itself(spot: Spot) -> None:
    """Importing the module of a foreign type is an attack already; no setting of the version makes it trusted."""
    spot.code("planted_step.py", "def double(x):\n    return x * 2\n")
    sys.path.insert(0, str(spot.folder))
    step = FunctionTransformer(importlib.import_module("planted_step").double)
    model = make_pipeline(step, estimator())
    kinds = skops.io.get_untrusted_types(data=skops.io.dumps(model))
    spot.save(mlflow.sklearn, model, serialization_format="skops", skops_trusted_types=kinds)
    del sys.modules["planted_step"]
    spot.canary.unlink(missing_ok=True)
    for allowed in ({}, {"allow_pickle": True}, {"allow_code": True}):
        with pytest.raises(InvalidModel, match=r"not trusted: planted_step\.double"):
            load(spot.model, **allowed)
        assert not spot.canary.exists()
    skops.io.load(spot.model / "model.skops", trusted=kinds)
    assert spot.canary.exists()


def test_an_honest_skops_model_loads_without_any_permission(spot: Spot) -> None:
    """It answers right, too."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    assert answer(load(spot.model)) == SUMS


def test_an_honest_onnx_model_loads_without_any_permission(spot: Spot) -> None:
    """With the extra onnx."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = helper.make_tensor("w", kind, [2, 1], [1.0, 1.0])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "sums", [helper.make_tensor_value_info("x", kind, ["n", 2])],
        [helper.make_tensor_value_info("y", kind, ["n", 1])], [weights],
    )  # fmt: skip
    signature = ModelSignature(Schema([TensorSpec(np.dtype("float32"), (-1, 2), "x")]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    spot.save(mlflow.onnx, model, signature=signature)
    assert answer(load(spot.model)) == SUMS


def exported(spot: Spot) -> Path:
    """An honest network, exported; its archive."""
    torch = pytest.importorskip("torch")
    network = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(network.weight)
    torch.nn.init.zeros_(network.bias)
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("float32"), (-1, 2))]), Schema([TensorSpec(np.dtype("float32"), (-1, 1))])
    )
    example = np.ones((2, 2), dtype=np.float32)
    spot.save(mlflow.pytorch, network, signature=signature, input_example=example)
    return spot.model / "data" / "model.pt2"


def test_an_exported_network_loads_without_any_permission(spot: Spot) -> None:
    """Its records are tensors and JSON."""
    exported(spot)
    assert answer(load(spot.model)) == SUMS


@pytest.mark.parametrize("allowed", [{}, {"allow_pickle": True}, {"allow_code": True}])
@pytest.mark.parametrize("record", ["pickled", "compiled"])
def test_an_exported_network_with_a_crafted_record_is_refused(
    spot: Spot, record: str, allowed: dict[str, bool]
) -> None:
    """torch itself would unpickle it, or open the compiled code in it."""
    archive = exported(spot)
    replace = partial(_with_pickle, canary=spot.canary) if record == "pickled" else _with_library
    replace(archive)
    with pytest.raises(InvalidModel, match="pt2 archive"):
        load(spot.model, **allowed)
    assert not spot.canary.exists()
    if record == "pickled" and not allowed:
        subprocess.run([sys.executable, "-c", f"import torch; torch.export.load({str(archive)!r})"], check=False,
                       stderr=subprocess.DEVNULL)  # fmt: skip
        assert spot.canary.exists()


def _with_pickle(archive: Path, canary: Path) -> None:
    """The sample inputs become a checkpoint whose pickle touches the canary."""
    import torch

    crafted = archive.with_suffix(".crafted")
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(crafted, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/model.pt"):
                torch.save(Bomb(canary), archive.with_suffix(".bomb"))
                content = archive.with_suffix(".bomb").read_bytes()
            new.writestr(name, content)
    archive.with_suffix(".bomb").unlink()
    crafted.replace(archive)


def _with_library(archive: Path) -> None:
    """A shared library among the records, as AOTInductor leaves it."""
    with zipfile.ZipFile(archive, "a") as file:
        top = file.namelist()[0].split("/")[0]
        file.writestr(f"{top}/data/aotinductor/model/model.so", b"\x7fELF" + bytes(60))


def test_the_bomb_is_real(tmp_path: Path) -> None:
    """Unpickling it touches the canary."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
