"""Names of libraries that their authors promise nothing about: all of them stand here, and a change of one is told by name."""

from __future__ import annotations

import ast
import configparser
import hashlib
import importlib
import inspect
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
from packaging.specifiers import SpecifierSet
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.transport.lane import LaneProtocol
from serving.transport.protocol import Protocol
from tests.servers import ROOT

OWN = ("serving", "registry", "features", "monitoring")
UVICORN = "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol"
#: Name → the beginning of its source's SHA-256, in the version of requirements.txt; None where there is no source to read.
#: Whoever changes a digest has read what the library changed, and what of ours stands on it.
NAMES: dict[str, str | None] = {
    "feast.feature_store.FeatureStore._get_provider": "152985cbc91c",
    "feast.infra.online_stores.helpers._mmh3": "1403a9c948d9",
    "feast.infra.online_stores.redis.RedisOnlineStore._convert_redis_values_to_protobuf": "7ef5e317f2f6",
    "feast.infra.online_stores.redis.RedisOnlineStore._generate_hset_keys_for_features": "c0c3cf8e416a",
    "feast.infra.online_stores.redis.RedisOnlineStore._generate_redis_keys_for_entities": "f36b688ef1d2",
    "feast.infra.online_stores.redis.RedisOnlineStore._parse_connection_string": "c598720fbd7b",
    "feast.infra.online_stores.redis._versioned_fv_name": "0a2a3cfbca70",
    "feast.utils._get_feature_views_to_use": "cc2a44cf5948",
    "mlflow.pytorch._validate_pt2_archive_is_pickle_free": "93fc0f68d904",
    "sklearn.calibration._SigmoidCalibration": "4fc96fad1c10",
    "sklearn.ensemble._hist_gradient_boosting.common.PREDICTOR_RECORD_DTYPE": None,
    "sklearn.metrics._pairwise_distances_reduction.ArgKmin": "e01733136877",
    "sklearn.neighbors._base._get_weights": "84e5e157d9a3",
    "sklearn.neural_network._base.ACTIVATIONS": None,
    "sklearn.svm._base.LIBSVM_IMPL": None,
    "sklearn.svm._libsvm": None,
    "sklearn.tree._tree.NODE_DTYPE": None,
    "sklearn.utils.multiclass._ovr_decision_function": "ee43296f489c",
    "skops.io._audit.get_tree": "69259f7d621e",
    "skops.io._utils.read_schema": "82012073a836",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.__init__": "4f0899941034",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol._start_asgi_task": "9c08c2571ae9",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.connection_lost": "c91a4c9bf2e2",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.connection_made": "6efb565ff3d3",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.data_received": "010a7ae59a5d",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_body": "dba9c32aeba3",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_headers_complete": "1ea8589acfad",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_message_begin": "96d377fdc7c2",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_message_complete": "1fbad42dc31f",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.on_response_complete": "64e254f28e38",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.pause_writing": "17a8fd215d96",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.resume_writing": "7844bbaa8cce",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.send_400_response": "ae5a4a3782b6",
    "uvicorn.protocols.http.httptools_impl.HttpToolsProtocol.shutdown": "d7351fa33f00",
}
#: Reached as attributes of objects that we are given; the tests of accelerated models read the attributes of estimators.
ATTRIBUTES = (
    "feast.feature_store.FeatureStore._get_provider",
    "feast.infra.online_stores.redis.RedisOnlineStore._convert_redis_values_to_protobuf",
    "feast.infra.online_stores.redis.RedisOnlineStore._generate_hset_keys_for_features",
    "feast.infra.online_stores.redis.RedisOnlineStore._generate_redis_keys_for_entities",
    "feast.infra.online_stores.redis.RedisOnlineStore._parse_connection_string",
)


def overridden() -> list[str]:
    """uvicorn's methods that a protocol of ours replaces or extends."""
    ours = {*vars(Protocol), *vars(LaneProtocol)} & set(vars(HttpToolsProtocol))
    return sorted(f"{UVICORN}.{name}" for name in ours if callable(vars(HttpToolsProtocol)[name]))


def imported() -> Iterator[str]:
    """Every private name that a module of ours imports from elsewhere."""
    for path in (file for package in OWN for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] not in OWN:
                yield from (name for each in node.names if is_private(name := f"{node.module}.{each.name}"))


def is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def resolve(name: str) -> Any:
    """The object of a dotted name."""
    module, parts = name, list[str]()
    while True:
        try:
            found: Any = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, part = module.rpartition(".")
            parts.insert(0, part)
    for part in parts:
        found = getattr(found, part)
    return found


def digest_of(name: str) -> str | None:
    found = resolve(name)
    try:
        source = inspect.getsource(found)
    except (TypeError, OSError):  # compiled, or a value
        return None
    return hashlib.sha256(source.encode()).hexdigest()[:12]


@pytest.mark.audit("13")
def test_every_private_name_stands_in_the_table() -> None:
    """And none that nobody uses."""
    assert sorted(NAMES) == sorted({*imported(), *overridden(), *ATTRIBUTES})


@pytest.mark.audit("13")
@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_is_what_it_was(name: str) -> None:
    """The library's own text of it is the one that was read."""
    assert digest_of(name) == NAMES[name], f"{name} of {name.split('.')[0]} has changed: read it, and what stands on it"


@pytest.mark.audit("13")
def test_libraries_with_private_names_have_an_upper_bound() -> None:
    """The range of setup.cfg holds the tested version and ends before its next minor one."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    said = "\n".join([config["options"]["install_requires"], *config["options.extras_require"].values()])
    distributions = {"sklearn": "scikit-learn"}
    for library in {name.split(".")[0] for name in NAMES}:
        package = distributions.get(library, library)
        line = next(line for line in said.splitlines() if line.startswith(f"{package}>"))
        tested = version(package).split("+")[0]
        major, minor = (int(part) for part in tested.split(".")[:2])
        allowed = SpecifierSet(line.removeprefix(package))
        assert tested in allowed, line
        assert f"{major}.{minor + 1}.0" not in allowed, line
