"""MLflow's own deliveries, from a real tracking server to a real server that would not look by itself for an hour."""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from serving.cli import main
from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server, copy_registry, free_port, start_mlflow

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
SECRET = "correct horse battery staple"
HOUR = {"HEADWAY_REGISTRY__POLL_SECONDS": "3600", "HEADWAY_REGISTRY__PINNED_POLL_SECONDS": "3600"}


@pytest.fixture
def delivering(trained: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    """A tracking server that may deliver to this machine, and sees a new webhook at once."""
    key = base64.urlsafe_b64encode(b"k" * 32).decode()
    allowed = {
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": key,
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
    }
    with start_mlflow(copy_registry(trained, tmp_path), **allowed) as server:
        yield server


@dataclass
class Ended:
    """What a command said, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Runs `headway webhook …` to its end."""

    def run(mlflow: MlflowServer, *words: str, secret: str = SECRET) -> Ended:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        monkeypatch.setenv("HEADWAY_REGISTRY__TRACKING_URI", mlflow.uri)
        monkeypatch.setenv("HEADWAY_REGISTRY__WEBHOOK_SECRET", secret)
        capfd.readouterr()
        code = main(["webhook", *words])
        return Ended(code, *capfd.readouterr())

    return run


def delivered(server: Server, outcome: str) -> float:
    return server.metric("headway_webhooks_total", outcome=outcome) or 0.0


def test_a_moved_alias_and_a_changed_tag_are_seen_without_a_poll(
    delivering: MlflowServer, headway: Callable[..., Server], command: Callable[..., Ended]
) -> None:
    """Registered, tested, obeyed, updated and removed; the secret is in no log."""
    server = headway("--model-uri", f"models:/{MODEL}@champion", MLFLOW_TRACKING_URI=delivering.uri,
                     HEADWAY_REGISTRY__WEBHOOK_SECRET=SECRET, **HOUR)  # fmt: skip
    server.until_serves("1")
    url = f"{server.base}/webhooks/mlflow"

    made = command(delivering, "register", "--url", url)
    assert (made.returncode, made.stdout) == (0, f"headway registered: {url}, 5 events\n")
    assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in made.stderr
    assert "answered 200" in command(delivering, "test").stdout
    assert delivered(server, "ignored") == 1

    for version in ("2", "1", "3"):
        delivering.set_alias(MODEL, "champion", version)
        server.until_serves(version)
    before = server.status()["since"]
    delivering.set_tag(MODEL, "3", "headway.output", "labels")
    server.until(lambda: server.status()["since"] > before, "rebuilt")
    assert "probabilities" not in server.post(f"/v1/models/{MODEL}:predict", {"instances": [[0.0] * 10]}).json()
    assert delivered(server, "woken") >= 4

    again = command(delivering, "register", "--url", url, secret="another secret")
    assert again.stdout.startswith("headway updated")
    failed = command(delivering, "test")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "the answer was 401" in failed.stderr
    assert delivered(server, "refused") == 1
    assert url in command(delivering, "list").stdout
    assert command(delivering, "remove").stdout.startswith("headway removed")
    assert "no webhooks" in command(delivering, "list").stderr
    assert command(delivering, "remove").returncode == 1
    assert SECRET not in server.log.read_text() + made.stdout + made.stderr


def test_an_event_wakes_only_the_model_that_it_names(
    delivering: MlflowServer, headway: Callable[..., Server], command: Callable[..., Ended]
) -> None:
    """One that names another registered model changes no poll, whoever sent it."""
    server = headway("--model-uri", f"models:/{MODEL}/1", MLFLOW_TRACKING_URI=delivering.uri,
                     HEADWAY_REGISTRY__WEBHOOK_SECRET=SECRET, **HOUR)  # fmt: skip
    server.until_ready()
    assert command(delivering, "register", "--url", f"{server.base}/webhooks/mlflow").returncode == 0
    number = register(delivering.uri, "stranger", skops(linear(1.0)), columns(("x", "double")))
    delivering.set_alias("stranger", "champion", number)
    server.until(lambda: delivered(server, "ignored") >= 2, "delivered")
    assert server.metric("headway_registry_polls_total") == 1
    delivering.set_alias(MODEL, "champion", "2")
    server.until(lambda: server.metric("headway_registry_polls_total") == 2, "polled")
    assert server.status()["version"] == "1"


def test_the_route_answers_in_the_contracts_shape(shared: MlflowServer, headway: Callable[..., Server]) -> None:
    """Unsigned 401, wrong method 405, too large 413: one sentence each."""
    server = headway("--model-uri", f"models:/{MODEL}/1", MLFLOW_TRACKING_URI=shared.uri,
                     HEADWAY_REGISTRY__WEBHOOK_SECRET=SECRET)  # fmt: skip
    url = f"{server.base}/webhooks/mlflow"
    answers = {
        401: requests.post(url, json={}, timeout=10),
        405: requests.get(url, timeout=10),
        413: requests.post(url, data=b" " * 65_537, timeout=10),
        415: requests.post(url, data=b"{}", headers={"content-type": "text/plain"}, timeout=10),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        assert list(answer.json()) == ["error"]
        assert answer.headers["content-type"] == "application/json"


def test_without_a_secret_there_is_no_such_route(shared: MlflowServer, headway: Callable[..., Server]) -> None:
    """404, for every method."""
    server = headway("--model-uri", f"models:/{MODEL}/1", MLFLOW_TRACKING_URI=shared.uri)
    for method in ("GET", "POST"):
        assert requests.request(method, f"{server.base}/webhooks/mlflow", json={}, timeout=10).status_code == 404


def test_what_mlflow_refuses_is_explained(shared: MlflowServer, command: Callable[..., Ended]) -> None:
    """A server with its defaults takes neither http nor private addresses: the sentence names what allows them."""
    for url, names in (
        ("http://127.0.0.1:9/webhooks/mlflow", "MLFLOW_WEBHOOK_ALLOWED_SCHEMES"),
        ("https://127.0.0.1:9/webhooks/mlflow", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS"),
        ("https://nowhere.invalid/webhooks/mlflow", "cannot resolve"),
    ):
        refused = command(shared, "register", "--url", url)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert names in refused.stderr


@pytest.mark.slow
def test_a_secret_that_mlflow_cannot_read_any_more_is_explained(
    trained: Path, tmp_path: Path, command: Callable[..., Ended]
) -> None:
    """MLflow answers a bare 500 after a restart without a fixed key; the sentence names the key."""
    copy_registry(trained, tmp_path)
    allowed = {"MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http", "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true"}
    with start_mlflow(tmp_path, **allowed) as server:
        assert command(server, "register", "--url", "http://127.0.0.1:9/webhooks/mlflow").returncode == 0
    with start_mlflow(tmp_path, **allowed) as server:
        failed = command(server, "list")
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY" in failed.stderr


def test_a_command_that_cannot_ask_says_so(command: Callable[..., Ended]) -> None:
    """No registry named: 2. No secret: 2. Nobody there: 1. Never a trace."""
    nobody = MlflowServer(f"http://127.0.0.1:{free_port()}")
    for mlflow, words, secret, code, says in (
        (MlflowServer(""), ("list",), SECRET, 2, "MLFLOW_TRACKING_URI"),
        (nobody, ("register", "--url", "https://x/webhooks/mlflow"), "short", 2, "at least 8 characters"),
        (nobody, ("list",), SECRET, 1, "connection refused"),
    ):
        failed = command(mlflow, *words, secret=secret)
        assert failed.returncode == code
        assert says in failed.stderr
        assert "Traceback" not in failed.stderr
