"""PyTorch networks: the batches they are bound to, devices, autocast, torch.compile."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from registry.errors import InvalidModel
from registry.mlmodel import Signature, Tensor
from registry.versions import ModelVersion
from serving.configuration import ModelOptions, TorchOptions, resolve
from serving.loading import Loaded, Loader, warm
from serving.options import options_of
from serving.runtimes.base import Engine, Want
from serving.schema import compile_schema
from serving.settings import load_settings
from tests.models import Folder

torch = pytest.importorskip("torch")
ROWS = [[1.0, 2.0], [3.0, -1.0], [0.5, 0.25]]


def load(
    path: Path, example: int = 2, network: Any = None, pickled: bool = False, isolation: str = "none", **said: Any
) -> tuple[Loaded, Any]:
    """A version of two columns, loaded and warmed; and its network."""
    torch.manual_seed(0)
    network = network or torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
    kind = np.dtype("float32")
    signature = ModelSignature(Schema([TensorSpec(kind, (-1, 2))]), Schema([TensorSpec(kind, (-1, 2))]))
    form: dict[str, Any] = {"input_example": np.ones((example, 2), dtype=np.float32)}
    mlflow.pytorch.save_model(
        network, str(path / "model"), signature=signature, pip_requirements=["mlflow"],
        **({"serialization_format": "pickle"} if pickled else form),
    )  # fmt: skip
    options = ModelOptions(allow_code=True, isolation=isolation, torch=TorchOptions(**said))
    loaded = Loader(Folder(path / "model"), options, None).load(ModelVersion("m", "3"))
    warm(loaded)
    return loaded, network


def raw_of(loaded: Loaded) -> np.ndarray:
    raw = loaded.runtime.predict((np.array(ROWS, np.float32),), len(ROWS), Want.RAW).raw
    assert raw is not None
    return raw


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("size", [1, 3])
def test_a_network_exported_for_a_fixed_batch_answers_any_number_of_rows(size: int) -> None:
    """In calls of that size, the last one filled up; each row's answer is its own."""
    from serving.runtimes.exported import batch_size
    from serving.runtimes.pytorch import TorchRuntime

    layer = torch.nn.Linear(2, 1)
    fixed = torch.export.export(layer, (torch.ones(size, 2),))
    schema = compile_schema(Signature((Tensor(None, "float32", (-1, 2)),), ()))
    runtime = TorchRuntime(fixed.module(), schema, resolve(ModelOptions(), {}, {}), batch_size(fixed))
    for rows in (1, 2, 3, 7):
        x = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
        raw = runtime.predict((x,), rows, Want.RAW).raw
        assert raw is not None
        assert np.allclose(raw, layer(torch.from_numpy(x)).detach().numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_version_logged_with_an_example_of_one_row_is_served(tmp_path: Path) -> None:
    """MLflow exports such a network for batches of one row, with a warning that is easily missed."""
    loaded, network = load(tmp_path, example=1)
    assert np.allclose(raw_of(loaded), network(torch.tensor(ROWS)).detach().numpy(), atol=1e-6)


def test_a_network_exported_for_a_range_of_batches_keeps_to_it() -> None:
    """At most what the guard allows, and at least, too."""
    from serving.runtimes.exported import BatchSize, batch_size

    def bounds(low: int | None, high: int | None) -> BatchSize:
        dims = {"input": {0: torch.export.Dim("rows", min=low, max=high)}}
        return batch_size(torch.export.export(torch.nn.Linear(2, 1), (torch.ones(4, 2),), dynamic_shapes=dims))

    assert bounds(None, None) == BatchSize()
    assert bounds(3, 16) == BatchSize(3, 16)
    assert bounds(None, 16) == BatchSize(1, 16)


@pytest.mark.audit("26")
def test_a_batch_is_not_filled_up_with_gigabytes() -> None:
    """How many rows a network takes at least stands in its file."""
    from serving.runtimes.exported import BatchSize

    row = torch.ones(1, 2)
    assert len(BatchSize(least=1000).padded(row)) == 1000
    with pytest.raises(InvalidModel, match="no fewer than 1000000000 rows"):
        BatchSize(least=10**9).padded(row)


@pytest.mark.filterwarnings("ignore")
def test_a_device_that_is_not_there_fails_the_version(tmp_path: Path) -> None:
    """The reason names the setting; `auto` takes what there is."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InvalidModel, match=r"torch\.device is cuda, and PyTorch sees no GPU"):
        load(tmp_path / "cuda", device="cuda")
    loaded, network = load(tmp_path / "auto", device="auto", pickled=True)
    assert np.allclose(raw_of(loaded), network(torch.tensor(ROWS)).detach().numpy(), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_of_several_workers_are_the_files_pages(tmp_path: Path, pickled: bool) -> None:
    """Both formats: the answers are the same, and the large weights are where the kernel keeps one copy for all."""
    from serving.runtimes.mapped import LEAST_BYTES

    network = torch.nn.Sequential(torch.nn.Linear(2, 1024), torch.nn.Linear(1024, 1024), torch.nn.Linear(1024, 2))
    own, _ = load(tmp_path / "own", network=network, pickled=pickled)
    shared, _ = load(tmp_path / "shared", network=network, pickled=pickled, shared=True)
    assert raw_of(shared).tobytes() == raw_of(own).tobytes()
    file = tmp_path / "shared" / "model" / "data" / f"model.{'pth' if pickled else 'pt2'}"
    places = [
        range(*(int(end, 16) for end in line.split()[0].split("-")))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(str(file))
    ]
    runtime: Any = shared.runtime
    for weight in runtime.network.parameters():
        assert any(weight.data_ptr() in place for place in places) == (weight.nbytes >= LEAST_BYTES)


def test_what_is_no_archive_is_not_mapped(tmp_path: Path) -> None:
    """PyTorch's format of before 1.6, and weights that are not those of the file."""
    from serving.runtimes.mapped import map_weights

    network = torch.nn.Linear(1024, 1024)
    torch.save(network, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert map_weights(network, tmp_path / "old.pth") == 0
    torch.save(torch.nn.Linear(1024, 1024), tmp_path / "other.pth")
    assert map_weights(network, tmp_path / "other.pth") == 0
    assert map_weights(network.half(), tmp_path / "other.pth") == 0


@pytest.mark.parametrize("form", ["bfloat16", "float16"])
@pytest.mark.filterwarnings("ignore")
def test_autocast_computes_in_half_precision(tmp_path: Path, form: str) -> None:
    """Near the network's own numbers, and not the same; answered in a type that NumPy has."""
    loaded, network = load(tmp_path, autocast=form)
    expected = network(torch.tensor(ROWS)).detach().numpy()
    assert np.allclose(raw_of(loaded), expected, atol=0.05)
    assert not np.array_equal(raw_of(loaded), expected)
    assert loaded.outputs[0]["datatype"] == ("FP32" if form == "bfloat16" else "FP16")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_answers_as_it_did_uncompiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches of any size, and in half precision within what that can tell apart."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    for example, autocast in ((2, "none"), (1, "none"), (2, "bfloat16")):
        loaded, network = load(tmp_path / f"{example}-{autocast}", example=example, compile=True, autocast=autocast)
        assert loaded.runtime.engine == Engine("torch.compile")
        for rows in (1, 2, 5, 100):
            x = np.random.default_rng(rows).normal(size=(rows, 2)).astype(np.float32)
            raw = loaded.runtime.predict((x,), rows, Want.RAW).raw
            near = 1e-6 if autocast == "none" else 0.05
            assert np.allclose(raw, network(torch.from_numpy(x)).detach().numpy(), atol=near)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_compiles_to_other_answers_is_served_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that draws its answers by chance never agrees with itself."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))

    class Chance(torch.nn.Module):  # type: ignore[name-defined,misc]
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.dropout(x, 0.5, training=True)

    loaded, _ = load(tmp_path, network=Chance(), pickled=True, compile=True)
    engine = loaded.runtime.engine
    assert (engine.name, engine.why) == ("torch", "numbers of the compiled network differ by more than 1e-06")


NO_COMPILER = """
import torch
from serving.configuration import ModelOptions, TorchOptions, resolve
from serving.runtimes.compiled import compiled
from serving.runtimes.pytorch import TorchRuntime
from registry.mlmodel import Signature, Tensor
from serving.schema import compile_schema
schema = compile_schema(Signature((Tensor(None, "float32", (-1, 2)),), ()))
runtime = TorchRuntime(torch.nn.Linear(2, 1), schema, resolve(ModelOptions(), {}, {}))
print(compiled(runtime, (__import__("numpy").ones((1, 2), "f4"),)).engine)
"""


@pytest.mark.slow
def test_without_a_compiler_the_network_is_served_as_it_is(tmp_path: Path) -> None:
    """The log has what PyTorch said, and it may still run several batches at once."""
    environ = {**os.environ, "CXX": "/nowhere/c++", "PATH": "/nowhere", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", NO_COMPILER], env=environ, capture_output=True, text=True, check=True)
    assert re.search(r"Engine\(name='torch', why='torch\.compile raised \w+', parallel=True\)", done.stdout)


def test_an_entry_says_what_it_wants_and_the_defaults_say_the_rest() -> None:
    """Key by key, and nobody's word is the CPU, uncompiled, in full precision."""
    models = [{"name": "a", "uri": "models:/a/1", "torch": {"device": "auto"}}, {"name": "b", "uri": "models:/b/1"}]
    settings = load_settings({"defaults": {"torch": {"autocast": "bfloat16", "device": "cuda"}}, "models": models}, {})
    found = [options_of(entry, settings).torch for entry in settings.models]
    assert found == [TorchOptions("auto", False, "bfloat16"), TorchOptions("cuda", False, "bfloat16")]
    assert ModelOptions().torch == TorchOptions("cpu", False, "none")


def test_workers_share_what_they_can() -> None:
    """One server process has nobody to share with."""
    for workers in (1, 2):
        said = {"server": {"workers": workers}, "models": [{"name": "a", "uri": "models:/a/1"}]}
        settings = load_settings(said, {})
        assert options_of(settings.models[0], settings).torch.shared == (workers > 1)


def test_a_process_of_its_own_computes_as_the_operator_says(tmp_path: Path) -> None:
    """What holds in the server holds there."""
    loaded, network = load(tmp_path, autocast="bfloat16", isolation="process")
    try:
        answered, expected = raw_of(loaded), network(torch.tensor(ROWS)).detach().numpy()
        assert not np.array_equal(answered, expected)
        assert np.allclose(answered, expected, atol=0.05)
    finally:
        loaded.dispose()
