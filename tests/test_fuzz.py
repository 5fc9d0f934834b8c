"""Nothing that a client sends is a fault of the server: a 4xx or an answer, never a 5xx, on every wire and both lanes."""

from __future__ import annotations

import http.client
import json
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema, TensorSpec
from onnx import TensorProto, helper
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from tests import fuzzing
from tests.fuzzing import Target
from tests.models import REQUIREMENTS
from tests.networks import FLOAT, graph, save_graph, signature
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.audit("35")]
ALL = {
    "d": "double",
    "f": "float",
    "l": "long",
    "i": "integer",
    "b": "boolean",
    "s": "string",
    "y": "binary",
    "t": "datetime",
}
#: MLflow refuses an optional integer of a Python model, whose column it finds to be of floats.
OPTIONAL = {name: kind for name, kind in ALL.items() if kind not in ("long", "integer")}
MIXED = {"size": "double", "weight": "float", "age": "long", "visits": "integer", "city": "string"}
DOUBLES = {f"x{i}": "double" for i in range(30)}
LONGS = {"a": "double", "n": "long"}
TARGETS = [
    Target("all", ALL), Target("optional", OPTIONAL), Target("mixed", MIXED), Target("scaled", DOUBLES), Target("plain", DOUBLES),
    Target("longs", LONGS), Target("several", {"x": "float32"}, {"x": (2,)}), Target("open", {"x": "float32"}, {"x": (2,)}), Target("any", {"x": "float64"}, {"x": (30,)}),
    Target("kinds", {"u": "uint8", "l": "int64"}, {"u": (2,), "l": ()}),
]  # fmt: skip
FAULTS = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DATA_LOSS}
HTTP: dict[str, tuple[str, Callable[[random.Random, Target], fuzzing.Body]]] = {
    "v1": ("/v1/models/{}:predict", fuzzing.v1),
    "v2": ("/v2/models/{}/infer", fuzzing.v2_json),
    "binary": ("/v2/models/{}/infer", fuzzing.v2_binary),
}


def columns(said: dict[str, str], *, required: bool = True) -> ModelSignature:
    return ModelSignature(Schema([ColSpec(kind, name, required=required) for name, kind in said.items()]))


def save_sklearn(path: Path, model: Any, signed: ModelSignature) -> None:
    example = np.zeros((1, 30)) if signed.inputs.is_tensor_spec() else None
    mlflow.sklearn.save_model(
        model,
        path,
        serialization_format="skops",
        signature=signed,
        pip_requirements=REQUIREMENTS,
        input_example=example,
    )


def save_python(path: Path, signed: ModelSignature) -> None:
    """A model of columns of any type, which answers the length of its rows' texts."""

    class Any_(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return [len(str(row)) for row in model_input.itertuples()]

    mlflow.pyfunc.save_model(str(path), python_model=Any_(), signature=signed, pip_requirements=["mlflow"])


def kinds() -> onnx.ModelProto:
    """Two tensors of integers, given back."""
    nodes = [helper.make_node("Identity", ["u"], ["first"]), helper.make_node("Identity", ["l"], ["second"])]
    types = {"u": (TensorProto.UINT8, ["n", 2]), "l": (TensorProto.INT64, ["n"])}
    ins = [helper.make_tensor_value_info(name, *types[name]) for name in types]
    outs = [helper.make_tensor_value_info(n, *types[t]) for n, t in (("first", "u"), ("second", "l"))]
    return helper.make_model(
        helper.make_graph(nodes, "kinds", ins, outs), opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )


def save_models(home: Path) -> None:
    """The versions of all targets, each in a folder of its name."""
    random_ = np.random.default_rng(0)
    x = random_.normal(size=(90, 30))
    y = (x[:, 0] > 0).astype(int)
    mixed = pd.DataFrame({
        "size": x[:, 0], "weight": x[:, 1].astype(np.float32), "age": random_.integers(18, 90, 90),
        "visits": random_.integers(0, 9, 90).astype(np.int32), "city": random_.choice(["Berlin", "Celle"], 90),
    })  # fmt: skip
    before = make_column_transformer(
        (StandardScaler(), ["size", "weight", "age", "visits"]), (OneHotEncoder(handle_unknown="ignore"), ["city"])
    )
    save_sklearn(home / "mixed", make_pipeline(before, LogisticRegression()).fit(mixed, y), columns(MIXED))
    save_sklearn(
        home / "scaled", make_pipeline(StandardScaler(), LogisticRegression()).fit(x * 1e-3, y), columns(DOUBLES)
    )
    save_sklearn(home / "plain", Ridge().fit(x, y), columns(DOUBLES))
    save_sklearn(home / "longs", LogisticRegression().fit(x[:, :2], y), columns(LONGS))
    wide = ModelSignature(Schema([TensorSpec(np.dtype("float64"), (-1, -1))]))
    save_sklearn(home / "any", make_pipeline(StandardScaler(), Ridge()).fit(x, y), wide)
    save_graph(home / "several", graph(), signature())
    save_graph(
        home / "open", graph("scores", width="k"), signature(width=-1), input_example={"x": np.ones((1, 2), FLOAT)}
    )
    specs = [TensorSpec(np.dtype("uint8"), (-1, 2), "u"), TensorSpec(np.dtype("int64"), (-1,), "l")]
    save_graph(home / "kinds", kinds(), ModelSignature(Schema(specs)))
    save_python(home / "all", columns(ALL))
    save_python(home / "optional", columns(OPTIONAL, required=False))


@pytest.fixture(scope="module")
def server(lane: str, serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A server of all targets, whose requests have no deadline."""
    home = tmp_path_factory.mktemp("fuzz")
    save_models(home)
    entries = [{"name": t.name, "uri": str(home / t.name), "timeout_ms": 0} for t in TARGETS]
    (home / "headway.yaml").write_text(
        json.dumps({"models": entries, "defaults": {"allow_code": True, "isolation": "none"}})
    )
    server = serve("--config", str(home / "headway.yaml"), HEADWAY_SERVER__LANE=lane)
    server.until_ready()
    return server


@pytest.fixture(scope="module")
def asked(server: Server) -> Iterator[Callable[[str, int], str]]:
    """Asks with the request of a seed on a wire; what became of it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    channel = grpc.insecure_channel(server.grpc)
    infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")

    def over_http(wire: str, r: random.Random, target: Target) -> str:
        path, make = HTTP[wire]
        body, headers = make(r, target)
        connection.request("POST", path.format(target.name), body, headers)
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != 200:
            assert list(json.loads(said)) == ["error"], body[:2000]
        assert answer.status < 500, (answer.status, said, body[:2000], headers)
        return str(answer.status)

    def over_grpc(r: random.Random, target: Target) -> str:
        data = fuzzing.grpc(r, target)
        call = infer.future(data, timeout=30)
        code = call.code()
        assert code not in FAULTS, (code, call.details(), data[:2000])
        return str(code)

    def ask(wire: str, seed: int) -> str:
        r = random.Random(f"{wire} {seed}")
        target = r.choice(TARGETS)
        return over_grpc(r, target) if wire == "grpc" else over_http(wire, r, target)

    yield ask
    connection.close()
    channel.close()


@pytest.mark.parametrize("wire", [*HTTP, "grpc"])
def test_no_request_is_a_fault_of_the_server(server: Server, asked: Callable[[str, int], str], wire: str) -> None:
    """Some hundred, always the same; some of them are good, and most are not."""
    found = {asked(wire, seed) for seed in range(300)}
    assert found & {"200", "StatusCode.OK"}
    assert len(found) > 1
    assert server.get("/ready").status_code == 200


@pytest.mark.slow
@pytest.mark.parametrize("wire", [*HTTP, "grpc"])
def test_no_request_is_a_fault_of_the_server_for_long(asked: Callable[[str, int], str], wire: str) -> None:
    """Others at each run, for HEADWAY_FUZZ_SECONDS or a minute; a failure names its seed."""
    end = time.monotonic() + float(os.environ.get("HEADWAY_FUZZ_SECONDS", "60"))
    seed = time.time_ns() // 1000
    while time.monotonic() < end:
        try:
            asked(wire, seed)
        except Exception as error:
            raise AssertionError(f"{wire}, seed {seed}") from error
        seed += 1
