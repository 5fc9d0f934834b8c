"""Trust fails closed: what could run code is refused, and each refusal is proved by a file that an attack would have written.

Every attack is real: with the operator's permission, or through the library itself, the same file is written.
"""

import importlib
import pickle
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import skops.io
import yaml
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.feature_selection import SelectKBest, mutual_info_classif
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import DotProduct, Matern, WhiteKernel
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, TweedieRegressor
from sklearn.metrics import get_scorer, get_scorer_names
from sklearn.model_selection import GridSearchCV, TimeSeriesSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils import all_estimators

from registry.errors import InvalidModel
from registry.versions import ModelVersion
from serving.configuration import ModelOptions
from serving.decoding import decode_instances
from serving.loading import Loaded, Loader, warm
from serving.runtimes.base import Want
from serving.trusted_types import TRUSTED_SKOPS
from tests.models import Folder, columns, linear

SIGNATURE = columns(("a", "double"), ("b", "double"))
ROWS, SUMS = [[1.0, 2.0], [3.0, 4.0]], [3.0, 7.0]


class Bomb:
    """Touches a file when it is unpickled, and turns into nothing."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.canary,)


def load(path: Path, **allowed: bool) -> Loaded:
    return Loader(Folder(path), ModelOptions(**allowed, isolation="none"), None).load(ModelVersion("m", "1"))


def answer(loaded: Loaded) -> list[float]:
    """The loaded version's answer to ROWS, warmed up as a server would."""
    warm(loaded)
    arrays = decode_instances(loaded.schema, ROWS, frozenset()).arrays
    assert arrays is not None
    labels = loaded.runtime.predict(arrays, 2, Want.LABELS).labels
    loaded.dispose()
    assert labels is not None
    return [float(v) for v in labels]


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes the MLmodel file, which whoever writes a version controls."""
    document = yaml.safe_load((path / "MLmodel").read_text())
    change(document)
    (path / "MLmodel").write_text(yaml.safe_dump(document))


class Spot:
    """Where one test's version and its canary lie."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.canary = folder, folder / "model", folder / "canary"

    def save(self, flavor: Any, *args: Any, **more: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = {"signature": SIGNATURE, "pip_requirements": ["mlflow"], **more}
            flavor.save_model(*args, path=str(self.model), **said)
        self.canary.unlink(missing_ok=True)  # MLflow itself may have loaded what it saved

    def code(self, name: str, body: str) -> str:
        """A Python file whose first act is to touch the canary."""
        file = self.folder / name
        file.write_text(f"from pathlib import Path\nPath({str(self.canary)!r}).touch()\n{body}")
        return str(file)


@pytest.fixture
def spot(tmp_path: Path) -> Iterator[Spot]:
    before, modules = list(sys.path), set(sys.modules)
    yield Spot(tmp_path)
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if name.startswith("planted"):
            del sys.modules[name]


def estimator(bomb: Path | None = None) -> LinearRegression:
    model = linear(1.0, 1.0)
    if bomb is not None:
        model.note = Bomb(bomb)
    return model


SUM = "class Sum(mlflow.pyfunc.PythonModel):\n    def predict(self, context, model_input, params=None):\n        return model_input.sum(axis=1)\n"


def pickled_sklearn(spot: Spot) -> None:
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")


def cloudpickled_sklearn(spot: Spot) -> None:
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="cloudpickle")


def sklearn_from_before_formats_were_named(spot: Spot) -> None:
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")
    rewrite(spot.model, lambda document: document["flavors"]["sklearn"].pop("serialization_format"))


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


# -- the list of trusted types ------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
X = RNG.random((60, 3))
LABELS, NUMBERS = (X[:, 0] > 0.5).astype(int), X[:, 1] + 1
TARGETS: list[tuple[Any, Any]] = [(X, LABELS), (X, NUMBERS), (X, np.c_[LABELS, 1 - LABELS]), (NUMBERS, NUMBERS),
                                  (["one two", "two three"], None)]  # fmt: skip
FOREIGN = {"SplineTransformer"}  # it holds SciPy's own splines


def fitted() -> Iterator[tuple[str, Any]]:
    """A fitted instance of every estimator that needs no arguments and fits some easy data."""
    for name, cls in all_estimators():
        for x, y in TARGETS:
            try:
                yield name, cls().fit(x, y)
                break
            except Exception:
                continue


VARIANTS = [
    GridSearchCV(Ridge(), {"alpha": [1, 2]}, cv=TimeSeriesSplit(2)),
    GridSearchCV(LogisticRegression(), {"C": [1, 2]}, scoring="roc_auc"),
    KNeighborsClassifier(metric="manhattan", algorithm="ball_tree"),
    KNeighborsClassifier(metric="chebyshev", algorithm="kd_tree"),
    GaussianProcessRegressor(WhiteKernel() + DotProduct() * Matern()),
    HistGradientBoostingClassifier(max_iter=2, categorical_features=[0]),
    GradientBoostingClassifier(n_estimators=2, loss="exponential"),
    TweedieRegressor(power=1.5),
    CalibratedClassifierCV(LogisticRegression(), method="isotonic"),
    make_pipeline(SelectKBest(mutual_info_classif, k=1), LogisticRegression()),
    make_pipeline(FunctionTransformer(np.log1p), RandomForestClassifier(2)),
    make_pipeline(
        ColumnTransformer([("scaled", make_pipeline(SimpleImputer(), StandardScaler()), [1]),
                           ("coded", OneHotEncoder(handle_unknown="ignore"), [0])], remainder="passthrough"),
        LogisticRegression(),
    ),
]  # fmt: skip


def foreign_types(model: Any) -> set[str]:
    return set(skops.io.get_untrusted_types(data=skops.io.dumps(model))) - TRUSTED_SKOPS


@pytest.mark.filterwarnings("ignore")
def test_every_estimator_of_scikit_learn_loads_with_the_servers_list() -> None:
    """Fitted with its defaults, and fitted in ways that bring other types of scikit-learn with them."""
    seen = set()
    for name, model in fitted():
        if name in {"Birch"}:  # skops cannot write it
            continue
        if name in FOREIGN:
            assert all(kind.startswith("scipy.") for kind in foreign_types(model))
            continue
        assert foreign_types(model) == set(), name
        skops.io.loads(skops.io.dumps(model), trusted=sorted(TRUSTED_SKOPS))
        seen.add(name)
    assert len(seen) > 140
    assert {"RandomForestClassifier", "HistGradientBoostingRegressor", "SimpleImputer"} <= seen


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", VARIANTS, ids=lambda m: type(m).__name__)
def test_an_estimator_with_parts_loads_with_the_servers_list(model: Any) -> None:
    """Searches, kernels, metrics, selectors and pipelines."""
    rows = np.c_[LABELS, X]
    fitted_model = model.fit(rows, LABELS)
    assert foreign_types(fitted_model) == set()
    loaded = skops.io.loads(skops.io.dumps(fitted_model), trusted=sorted(TRUSTED_SKOPS))
    assert np.array_equal(loaded.predict(rows), fitted_model.predict(rows))


def test_text_and_every_scorer_load_with_the_servers_list() -> None:
    """Vectorizers hold no foreign type, and a search may have been scored by any name."""
    words = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(["aa bb", "bb cc"] * 2, [0, 1] * 2)
    assert foreign_types(words) == set()
    assert [name for name in get_scorer_names() if foreign_types(get_scorer(name))] == []


def test_the_list_names_only_what_exists_and_only_what_is_inert() -> None:
    """scikit-learn's own, and six types of others that hold or name plain numbers."""
    for name in TRUSTED_SKOPS:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name
    others = {name for name in TRUSTED_SKOPS if not name.startswith("sklearn.")}
    assert others == {"functools.partial", "numpy.dtype", "numpy.mean", "numpy.number",
                      "scipy.sparse._csc.csc_matrix", "scipy.sparse._csr.csr_matrix"}  # fmt: skip


def test_a_partial_is_trusted_only_with_its_function() -> None:
    """`functools.partial` opens no door: what it would call must be trusted itself."""
    model = FunctionTransformer(partial(subprocess.check_call, ["true"]))
    assert foreign_types(model) == {"subprocess.check_call"}


def test_the_bomb_is_real(tmp_path: Path) -> None:
    """Unpickling it touches the canary."""
    pickle.loads(pickle.dumps(Bomb(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
