"""`headway verify` says what the server would do, without doing it; the server gives the same reasons."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from registry.trees import digest
from serving.cli import main
from tests.crafted import Spot, estimator
from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server
from tests.serving.test_onnx import linear as graph
from tests.serving.test_onnx import overwrite, save
from tests.signing import make_key, sign

AB = columns(("a", "double"), ("b", "double"))
Verify = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Verify:
    """Runs the verb with a cache of its own; returns the exit code, standard output and error."""
    monkeypatch.setenv("HEADWAY_REGISTRY__CACHE_DIR", str(tmp_path / "verify-cache"))

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(["verify", *words])
        said = capfd.readouterr()
        return code, said.out.strip(), said.err

    return run


@pytest.fixture
def spot(tmp_path: Path) -> Spot:
    return Spot(tmp_path)


def config(folder: Path, **tree: Any) -> str:
    (folder / "headway.yaml").write_text(json.dumps(tree))
    return str(folder / "headway.yaml")


def test_a_folder_that_would_load_exits_0(spot: Spot, verify: Verify) -> None:
    """Every fact in a line of its own; a folder needs no registry."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    code, out, err = verify(str(spot.model))
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (code, said["format"], said["verdict"]) == (0, "sklearn, skops", "would be loaded")
    assert (said["digest"], said["signature"]) == (f"sha256:{digest(spot.model)[0]}", "not checked")
    assert said["size"] == f"{digest(spot.model)[1]} bytes"
    assert "no entry of models" in err


def test_an_onnx_model_is_named_so_and_its_data_must_be_its_own(spot: Spot, verify: Verify) -> None:
    """The graph is parsed, not loaded; a file that it names elsewhere is a reason."""
    save(spot, graph())
    code, out, _ = verify(str(spot.model))
    said = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert (code, said["format"], said["verdict"]) == (0, "onnx", "would be loaded")
    overwrite(spot, graph(location="/etc/hostname"))
    (spot.model / "MLmodel").touch()  # a folder is another version whenever that file is written
    code, out, _ = verify(str(spot.model))
    assert (code, out.splitlines()[-1]) == (1, "- the onnx file names data that is not in the version's folder")


@pytest.mark.audit("1")
def test_an_exported_program_that_runs_code_is_refused_without_running_it(spot: Spot, verify: Verify) -> None:
    """With the reason that the server would give; where code is allowed it says that it would be loaded, and runs nothing."""
    pytest.importorskip("torch")
    from tests.serving.test_pt2 import attacked, in_a_guard

    attacked(spot, in_a_guard)
    code, out, _ = verify(str(spot.model))
    assert (code, "run as code (in guards_code): set allow_code" in out.splitlines()[-1]) == (1, True)
    entry = {"name": "m", "uri": str(spot.model), "allow_code": True}
    code, out, _ = verify(str(spot.model), "--config", config(spot.folder, models=[entry]))
    assert (code, "would be loaded" in out, spot.canary.exists()) == (0, True, False)


def test_a_refused_folder_exits_1_and_nothing_of_it_runs(spot: Spot, verify: Verify, tmp_path: Path) -> None:
    """Each reason is a line; as JSON they are a list."""
    spot.save(mlflow.sklearn, estimator(spot.canary), serialization_format="pickle")
    entry = {"name": "m", "uri": str(spot.model), "digest": "0" * 64}
    file = config(tmp_path, models=[entry])
    code, out, err = verify(str(spot.model), "--config", file)
    assert (code, "verdict    refused" in out) == (1, True)
    assert [line[:2] for line in out.splitlines()[-2:]] == ["- ", "- "]
    assert "as the entry m of models" in err
    code, out, _ = verify(str(spot.model), "--config", file, "--json")
    found = json.loads(out)
    assert (code, found["loads"], len(found["reasons"]), found["format"]) == (1, False, 2, "sklearn, pickle")
    assert not spot.canary.exists()
    file = config(tmp_path, models=[{**entry, "digest": found["digest"], "allow_pickle": True}])
    assert verify(str(spot.model), "--config", file)[0] == 0
    assert not spot.canary.exists()


def test_it_imports_no_server(spot: Spot, tmp_path: Path) -> None:
    """Looking takes neither KServe nor Feast."""
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    program = f"""
import sys
from serving.cli import main
code = main(["verify", {str(spot.model)!r}])
print(code, [name for name in ("kserve", "feast") if name in sys.modules])
"""
    environ = {"HEADWAY_REGISTRY__CACHE_DIR": str(tmp_path / "cache"), "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"


def test_what_cannot_be_asked_exits_2(verify: Verify, tmp_path: Path, spot: Spot) -> None:
    """A word that is no reference, an entry that does not exist, and one of several that was not chosen."""
    assert verify("nonsense")[0] == 2
    assert verify(str(spot.model), "--model-name", "nobody")[0] == 2
    file = config(tmp_path, models=[{"name": name, "uri": str(spot.model)} for name in ("one", "two")])
    code, _, err = verify(str(spot.model), "--config", file)
    assert (code, "one, two" in err) == (2, True)
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    assert verify(str(spot.model), "--config", file, "--model-name", "two")[0] == 0


def log_signed(uri: str, spot: Spot, public: Path, name: str) -> str:
    """Saves, signs, logs and registers a model, as docs/trust.md says; returns the version's number."""
    spot.save(mlflow.sklearn, linear(1.0, 1.0), serialization_format="skops")
    sign(spot.model, public)
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("tests")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(spot.model), artifact_path="model")
    return str(mlflow.register_model(f"runs:/{run.info.run_id}/model", name).version)


@pytest.mark.e2e
def test_server_and_verify_say_the_same(
    shared: MlflowServer, headway: Callable[..., Server], verify: Verify, spot: Spot, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A signed version serves; an unsigned one, and one whose files are not those of the digest, are FAILED with the
    reasons of verify, in the status and the log, and the signed one serves on."""
    pytest.importorskip("model_signing")
    pytest.importorskip("OpenSSL")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    public = make_key(tmp_path)
    assert log_signed(shared.uri, spot, public, "signed") == "1"
    register(shared.uri, "signed", skops(linear(2.0, 2.0)), AB)
    shared.set_alias("signed", "champion", "1")
    defaults = {"signature": {"required": True, "public_key": str(public)}}
    pin = json.loads(verify("models:/signed/1", "--json")[1])["digest"]
    entry = {"name": "m", "uri": "models:/signed@champion", "digest": pin}
    file = config(tmp_path, defaults=defaults, models=[entry])
    code, out, _ = verify("models:/signed@champion", "--config", file)
    assert (code, "signature  valid" in out) == (0, True)
    server = headway("--config", file, MLFLOW_TRACKING_URI=shared.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.2")
    server.until_ready()
    assert server.status("m")["digest"] == pin
    code, out, _ = verify("models:/signed/2", "--config", file, "--json")  # before it is promoted
    reasons = json.loads(out)["reasons"]
    assert (code, len(reasons), "digest pins another" in reasons[0], "no signature" in reasons[1]) == (1, 2, True, True)
    shared.set_alias("signed", "champion", "2")
    server.until(lambda: [v["state"] for v in server.status("m")["versions"]] == ["READY", "FAILED"], "refused")
    assert server.status("m")["versions"][1]["reason"] == "; ".join(reasons)
    assert server.status("m")["version"] == "1"
    assert next(x["reason"] for x in server.lines() if x.get("to") == "FAILED") == "; ".join(reasons)


@pytest.mark.e2e
def test_a_version_that_log_model_registered_can_be_signed_afterwards(
    shared: MlflowServer, verify: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Downloaded, signed without MLflow's note, and the signature added; with the note the reason says what to do."""
    pytest.importorskip("model_signing")
    pytest.importorskip("OpenSSL")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared.uri)
    register(shared.uri, "afterwards", skops(linear(1.0, 1.0)), AB)
    client, public = MlflowClient(shared.uri), make_key(tmp_path)
    id = client.get_model_version("afterwards", "1").source.removeprefix("models:/")
    folder = Path(mlflow.artifacts.download_artifacts("models:/afterwards/1", dst_path=str(tmp_path / "signing")))
    file = config(tmp_path, defaults={"signature": {"required": True, "public_key": str(public)}})
    for note in (True, False):
        if not note:
            (folder / "registered_model_meta").unlink()
        sign(folder, public)
        client.log_model_artifact(id, str(folder / "model.sig"))
        monkeypatch.setenv("HEADWAY_REGISTRY__CACHE_DIR", str(tmp_path / f"cache-{note}"))
        code, out, _ = verify("models:/afterwards/1", "--config", file)
        assert (code, "sign a folder without" in out) == ((1, True) if note else (0, False))
