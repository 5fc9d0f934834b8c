"""The verbs for people, against a real MLflow server and a real Headway."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from registry.promotions import KEPT
from serving.cli import main
from tests.servers import ROOT, MlflowServer, Server, free_port

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
TAG = "headway.history.champion"
Headway = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Headway:
    """Runs one verb against a tracking server of its own; returns the exit code, standard output and error."""
    monkeypatch.setenv("HEADWAY_REGISTRY__TRACKING_URI", mlflow_server.uri)

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main(words)
        said = capfd.readouterr()
        return code, said.out.strip(), said.err

    return run


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    return MlflowClient(mlflow_server.uri)


def champion(client: MlflowClient) -> str | None:
    found = client.get_registered_model(MODEL).aliases.get("champion")
    return None if found is None else str(found)


def history(client: MlflowClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(client.get_registered_model(MODEL).tags[TAG])
    return found


def test_two_promotions_and_two_rollbacks_end_where_they_began(command: Headway, client: MlflowClient) -> None:
    """Each says what changes; a third rollback has nowhere to go; MLflow remembers who, when and from what."""
    for words, change in (
        (("promote", MODEL, "2", "--alias", "champion", "--user", "anna"), "champion: 1 → 2"),
        (("promote", MODEL, "3", "--alias", "champion"), "champion: 2 → 3"),
        (("promote", MODEL, "3", "--alias", "champion"), "champion: 3 already; nothing changes"),
        (("rollback", MODEL), "champion: 3 → 2"),
        (("rollback", MODEL, "--alias", "champion", "--user", "ben"), "champion: 2 → 1"),
    ):
        code, said, _ = command(*words)
        assert (code, said) == (0, change)
        assert champion(client) == change.partition(" already")[0][-1]
    code, said, error = command("rollback", MODEL)
    assert (code, said, champion(client)) == (1, "", "1")
    assert "nothing to roll back to" in error
    moves = history(client)
    assert [(m["how"], m["from"], m["to"]) for m in moves] == [
        ("promote", "1", "2"), ("promote", "2", "3"), ("rollback", "3", "2"), ("rollback", "2", "1")
    ]  # fmt: skip
    assert [moves[0]["by"], moves[3]["by"]] == ["anna", "ben"]
    assert all(m["at"].endswith("Z") for m in moves)


def test_mlflows_own_variable_says_where_the_registry_is(mlflow_server: MlflowServer) -> None:
    """In a process of its own, as people run it; standard output stays free for results."""
    environ = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_server.uri}
    words = [sys.executable, "-m", "serving.cli", "promote", MODEL, "2", "--alias", "champion"]
    ended = subprocess.run(words, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "champion: 1 → 2\n")
    assert mlflow_server.uri in ended.stderr


def test_a_deleted_version_is_passed_over(command: Headway, client: MlflowClient) -> None:
    """And if nothing else is left, that is said."""
    for version in ("2", "3"):
        command("promote", MODEL, version, "--alias", "champion")
    client.delete_model_version(MODEL, "2")
    code, said, error = command("rollback", MODEL)
    assert (code, said, champion(client)) == (0, "champion: 3 → 1", "1")
    assert "passing over version 2" in error
    command("promote", MODEL, "3", "--alias", "champion")
    client.delete_model_version(MODEL, "1")
    code, _, error = command("rollback", MODEL)
    assert (code, champion(client)) == (1, "3")
    assert "but 1, which cannot serve any more" in error


def test_a_move_without_headway_is_noticed_and_undone(command: Headway, client: MlflowClient) -> None:
    """Someone moved the alias by hand, and then deleted it: a rollback puts back what was there before."""
    command("promote", MODEL, "2", "--alias", "champion")
    client.set_registered_model_alias(MODEL, "champion", "3")
    assert command("rollback", MODEL)[1] == "champion: 3 → 2"
    assert [m["how"] for m in history(client)] == ["promote", "noticed", "rollback"]
    client.delete_registered_model_alias(MODEL, "champion")
    assert command("rollback", MODEL)[1] == "champion: nothing → 2"
    assert champion(client) == "2"


def test_an_alias_that_is_not_there_is_made(command: Headway, client: MlflowClient) -> None:
    """There is nothing before it, so it cannot be rolled back."""
    assert command("rollback", MODEL, "--alias", "canary")[0] == 1
    assert command("promote", MODEL, "2", "--alias", "canary")[:2] == (0, "canary: nothing → 2")
    assert command("rollback", MODEL, "--alias", "canary")[0] == 1
    assert str(client.get_registered_model(MODEL).aliases["canary"]) == "2"


def test_the_history_is_bounded(command: Headway, client: MlflowClient) -> None:
    """In number and in length: MLflow's databases hold 5000 characters."""
    user = "ü" * 300
    for i in range(KEPT + 2):
        assert command("promote", MODEL, str(2 + i % 2), "--alias", "champion", "--user", user)[0] == 0
    assert len(history(client)) == KEPT
    assert len(client.get_registered_model(MODEL).tags[TAG]) < 5000


def test_what_cannot_serve_is_refused(command: Headway, client: MlflowClient, tmp_path: Path) -> None:
    """No such version or model, one that is not READY, a history that is none: exit 1, and nothing has changed."""
    with sqlite3.connect(tmp_path / "mlflow.db") as db:
        db.execute("UPDATE model_versions SET status = 'PENDING_REGISTRATION' WHERE version = 3")
    client.set_registered_model_tag(MODEL, "headway.history.broken", '{"not": "a list"}')
    for words, says in (
        (("promote", MODEL, "9", "--alias", "champion"), "version 9 of model 'predictive_maintenance' does not exist"),
        (("promote", "nobody", "1", "--alias", "champion"), "does not exist"),
        (("promote", MODEL, "3", "--alias", "champion"), "not READY"),
        (("promote", MODEL, "2", "--alias", "not an alias"), "Invalid alias name"),
        (("rollback", "nobody"), "model 'nobody' does not exist"),
        (("rollback", MODEL, "--alias", "broken"), "is no history"),
    ):
        code, said, error = command(*words)
        assert (code, said) == (1, ""), words
        assert says in error
        assert "Traceback" not in error
    assert champion(client) == "1"


def test_a_stage_that_keeps_its_highest_number_is_warned_about(command: Headway, client: MlflowClient) -> None:
    """MLflow resolves a stage to the highest number in it, so a step back needs the others archived."""

    def stages() -> dict[str, str]:
        return {str(v.version): v.current_stage for v in client.search_model_versions(f"name='{MODEL}'")}

    for version in ("1", "2", "3"):
        command("promote", MODEL, version, "--stage", "None")
    assert command("promote", MODEL, "3", "--stage", "production")[:2] == (0, "Production: nothing → 3")
    code, said, error = command("promote", MODEL, "1", "--stage", "Production")
    assert (code, said) == (0, "Production: 3 as before; version 1 is in the stage too")
    assert "--archive-existing" in error
    again = command("promote", MODEL, "1", "--stage", "Production", "--archive-existing", "--alias", "champion")
    assert again[1] == "champion: 1 already; nothing changes\nProduction: 3 → 1"
    assert stages() == {"1": "Production", "2": "None", "3": "Archived"}
    assert command("promote", MODEL, "1", "--stage", "Production")[1] == "Production: 1 already; nothing changes"


def test_words_that_make_no_sense_exit_2(command: Headway) -> None:
    """Before anything is asked."""
    assert command("promote", MODEL, "2")[0] == 2
    assert command("promote", MODEL, "two", "--alias", "champion")[0] == 2
    with pytest.raises(SystemExit) as exit:
        main(["promote", MODEL, "2", "--stage", "Prod"])
    assert exit.value.code == 2


def test_models_shows_what_serves_and_why(
    mlflow_server: MlflowServer, headway: Callable[..., Server], command: Headway, tmp_path: Path
) -> None:
    """A row per model; 0 while the required ones are READY, though one that is not required has nothing to serve."""
    file = tmp_path / "headway.yaml"
    models = [
        {"name": MODEL, "uri": f"models:/{MODEL}@champion"},
        {"name": "absent", "uri": f"models:/{MODEL}@nobody", "required": False},
    ]
    file.write_text(json.dumps({"models": models}))
    server = headway("--config", str(file), MLFLOW_TRACKING_URI=mlflow_server.uri)
    server.until_ready()
    server.until(lambda: "does not exist" in server.status("absent")["problem"], "asked")
    code, said, _ = command("models", "--url", server.base + "/")
    head, first, second = said.splitlines()
    assert code == 0
    assert head.split() == ["MODEL", "REFERENCE", "ASPIRED", "SERVING", "STATE", "SINCE", "SIZE", "DIGEST", "WHY"]
    assert first.split()[:5] == [MODEL, f"models:/{MODEL}@champion", "1", "1", "READY"]
    assert "sha256:" in first
    assert second.split()[:6] == ["absent", f"models:/{MODEL}@nobody", "-", "-", "NEW", "-"]
    assert second.endswith("does not exist in the registry")

    code, said, _ = command("models", "--json", "--url", server.base)
    assert (code, json.loads(said)) == (0, {"ready": True, "models": [server.status(MODEL), server.status("absent")]})


def test_models_exits_1_while_a_required_model_is_not_ready(
    mlflow_server: MlflowServer, headway: Callable[..., Server], command: Headway
) -> None:
    """The table is shown all the same."""
    server = headway("--model-uri", f"models:/{MODEL}@nobody", MLFLOW_TRACKING_URI=mlflow_server.uri)
    code, said, error = command("models", "--url", server.base)
    assert (code, said.splitlines()[1].split()[0]) == (1, MODEL)
    assert "not ready" in error


class Stranger(BaseHTTPRequestHandler):
    """A server of another kind."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def stranger() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Stranger)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_models_says_when_no_headway_answers(stranger: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody, somebody else, or no address: exit 1 and a sentence, without the password in the address."""
    for url, says in (
        (f"http://anna:secret@127.0.0.1:{free_port()}", "no server answers"),
        (stranger, "no Headway server"),
        ("nonsense", "no server answers"),
    ):
        assert main(["models", "--url", url]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert "secret" not in error
