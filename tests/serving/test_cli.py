"""The command line: every flag, its exit code, and one sentence when something is wrong."""

import os
import socket
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from serving.cli import main
from serving.commands.serve import settings_from
from serving.settings import Settings, SettingsError
from tests.servers import ROOT, free_port

NOTHING: dict[str, Any] = {"config": None, "model_uri": None, "model_name": None, "model_version": None, "host": None,
                           "port": None, "grpc_port": None, "workers": None, "allow_pickle": False}  # fmt: skip


def settings(environ: dict[str, str] | None = None, **flags: Any) -> Settings:
    return settings_from(Namespace(**{**NOTHING, **flags}), environ or {})


def run(*argv: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command, as a process."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HEADWAY_", "MODEL_"))}
    command = [sys.executable, "-m", "serving.cli", *argv]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environ}, capture_output=True, text=True, timeout=60)


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on standard error: one line, and nothing on standard output."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("headway: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("argv", [["--help"], ["serve", "--help"]])
def test_help_is_offered_for_every_verb(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """It exits 0 and names the flags of the contract."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 0
    text = capsys.readouterr().out
    flags = ["--config", "--model-uri", "--model-name", "--model-version", "--host", "--port", "--grpc-port",
             "--workers", "--allow-pickle"]  # fmt: skip
    assert all(word in text for word in (flags if argv[0] == "serve" else ["serve"]))


@pytest.mark.parametrize(
    "argv", [[], ["dance"], ["serve", "--colour", "red"], ["serve", "--port", "high"], ["serve", "--model-u", "x"], ["serve", "x"]]
)  # fmt: skip
def test_a_wrong_flag_exits_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Also one that is cut short: it could mean another one tomorrow."""
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    assert "usage: headway" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["serve"], "--model-uri"),
        (["serve", "--model-name", "m"], "--model-version"),
        (["serve", "--model-version", "3"], "--model-name"),
        (["serve", "--model-uri", "models:/m/1", "--model-version", "3"], "--model-version"),
        (["serve", "--model-uri", "s3://bucket/x"], "'s3://bucket/x'"),
        (["serve", "--model-uri", "runs:/1/model"], "--model-name"),
        (["serve", "--model-uri", "models:/m-0123456789abcdef0123456789abcdef"], "--model-name"),
        (["serve", "--model-uri", "models:/m/1", "--workers", "0"], "server.workers"),
        (["serve", "--model-uri", "models:/m/1", "--port", "99999"], "server.port"),
        (["serve", "--model-uri", "models:/m/1", "--config", "/nowhere/headway.yaml"], "/nowhere/headway.yaml"),
    ],
)
def test_a_wrong_setting_exits_2_with_one_sentence(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the flag, the setting or the file."""
    for name in list(os.environ):
        if name.startswith(("HEADWAY_", "MODEL_")):
            monkeypatch.delenv(name)
    assert main(argv) == 2
    assert says in sentence(capsys)


def test_flags_become_settings() -> None:
    """Each one, and nothing that was not given."""
    found = settings(model_uri="models:/m/1", host="::1", port=1, grpc_port=2, workers=1, allow_pickle=True)
    assert (found.server.host, found.server.port, found.server.grpc_port) == ("::1", 1, 2)
    assert found.defaults.allow_pickle is True
    assert settings(model_uri="models:/m/1").defaults.allow_pickle is None


@pytest.mark.parametrize(
    ("word", "uri"),
    [("3", "models:/m/3"), ("Latest", "models:/m/latest"), ("PRODUCTION", "models:/m/Production"),
     ("staging", "models:/m/Staging"), ("champion", "models:/m@champion"), ("@champion", "models:/m@champion")],
)  # fmt: skip
@pytest.mark.parametrize("by", ["flag", "variable"])
def test_a_version_word_is_understood_in_any_case(word: str, uri: str, by: str) -> None:
    """On the command line and as `MODEL_NAME` with `MODEL_VERSION`."""
    if by == "flag":
        found = settings(model_name="m", model_version=word)
    else:
        found = settings({"MODEL_NAME": "m", "MODEL_VERSION": word})
    assert [(entry.name, entry.uri) for entry in found.models] == [("m", uri)]


def test_a_flag_beats_its_variable() -> None:
    """`MODEL_URI` means what `--model-uri` means, and an empty variable means nothing."""
    environ = {"MODEL_URI": "models:/m/1"}
    assert settings(environ).models[0].uri == "models:/m/1"
    assert settings(environ, model_uri="models:/m/2").models[0].uri == "models:/m/2"
    assert settings({**environ, "MODEL_NAME": "", "MODEL_VERSION": ""}).models[0].name == "m"
    with pytest.raises(SettingsError, match="no model"):
        settings({"MODEL_URI": ""})


def test_a_model_word_makes_the_models_of_the_file_void(tmp_path: Path) -> None:
    """The rest of the file stays."""
    file = tmp_path / "headway.yaml"
    file.write_text("server: {port: 1234}\nmodels: [{name: a, uri: 'models:/a/1'}, {name: b, uri: 'models:/b/1'}]")
    assert [entry.name for entry in settings(config=file).models] == ["a", "b"]
    found = settings(config=file, model_uri="models:/m/1")
    assert ([entry.name for entry in found.models], found.server.port) == (["m"], 1234)
    assert [entry.name for entry in settings({"MODEL_NAME": "m", "MODEL_VERSION": "1"}, config=file).models] == ["m"]


@pytest.mark.parametrize(
    ("given", "name", "uri"),
    [
        ({"STORAGE_URI": "/mnt/models", "MODEL_NAME": "m"}, "m", "/mnt/models"),
        ({"STORAGE_URI": "/mnt/models", "INFERENCE_SERVICE_NAME": "isvc"}, "isvc", "/mnt/models"),
        ({"STORAGE_URI": "/elsewhere", "INFERENCE_SERVICE_NAME": "isvc", "MODEL_NAME": "m"}, "m", "/elsewhere"),
        ({"STORAGE_URI": "s3://bucket/m", "MODEL_NAME": "m"}, "m", "/mnt/models"),
        ({"STORAGE_URI": "/mnt/models", "MODEL_NAME": "m", "MODEL_VERSION": "3"}, "m", "models:/m/3"),
        ({"STORAGE_URI": "/mnt/models", "MODEL_URI": "models:/m@champion"}, "m", "models:/m@champion"),
    ],
)
def test_the_folder_that_kserve_filled_is_served(given: dict[str, str], name: str, uri: str, tmp_path: Path) -> None:
    """`STORAGE_URI` names it, beats the file, and gives way to words that name a model."""
    file = tmp_path / "headway.yaml"
    file.write_text("models: [{name: a, uri: 'models:/a/1'}]")
    assert [(entry.name, entry.uri) for entry in settings(given, config=file).models] == [(name, uri)]


def test_a_folder_without_a_name_is_refused() -> None:
    """The sentence says what is missing."""
    with pytest.raises(SettingsError, match="--model-name"):
        settings({"STORAGE_URI": "/mnt/models"})


def test_a_served_name_that_no_route_could_name_is_refused() -> None:
    """It would be part of a path."""
    with pytest.raises(SettingsError, match="name"):
        settings(model_uri="models:/m/1", model_name="a/b")


@pytest.mark.e2e
@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_port_in_use_is_one_clear_sentence(flag: str) -> None:
    """The exit code is not 0, and nothing else has started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        others = [f for f in ("--port", "--grpc-port") if f != flag]
        done = run(
            "serve", "--model-uri", "models:/m/1", "--host", "127.0.0.1", flag, port, others[0], str(free_port())
        )
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("headway: ")]
    assert len(lines) == 1
    assert port in lines[0]
    assert "in use" in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.e2e
def test_the_command_exits_2_for_an_unknown_variable() -> None:
    """The name is in the sentence."""
    done = run("serve", "--model-uri", "models:/m/1", HEADWAY_SERVER__PROT="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "HEADWAY_SERVER__PROT" in done.stderr
