"""A registry that asks who we are, is spoken to over TLS, or refuses our Host header."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server, copy_registry, free_port, start_mlflow

pytestmark = pytest.mark.e2e
AB = columns(("a", "double"), ("b", "double"))


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[MlflowServer]:
    """A tracking server that asks for a user and a password."""
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        "admin_password = a-long-password-1\nauthorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environ = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "secret", "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
               "MLFLOW_AUTH_ADMIN_PASSWORD": "a-long-password-1"}  # fmt: skip
    with start_mlflow(tmp_path, free_port(), "--app-name", "basic-auth", **environ) as server:
        yield server


def test_a_registry_that_wants_credentials(
    guarded: MlflowServer, headway: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own variables are used to read and to download; without them, or wrong ones, the status says so."""
    login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a-long-password-1"}
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    register(guarded.uri, "secret", skops(linear(1.0, 0.0)), AB)
    flags = ("--model-uri", "models:/secret/1")
    for name in login:
        monkeypatch.delenv(name)
    server = headway(*flags, MLFLOW_TRACKING_URI=guarded.uri, **login)
    server.until_ready()
    assert server.post("/v1/models/secret:predict", {"instances": [[1.0, 2.0]]}).json()["predictions"] == [1.0]
    wrong = headway(*flags, MLFLOW_TRACKING_URI=guarded.uri, **{**login, "MLFLOW_TRACKING_PASSWORD": "wrong"})
    wrong.until(lambda: "other credentials" in (wrong.status("secret")["problem"] or ""), "told")


@pytest.mark.slow
def test_a_registry_that_refuses_our_host_header(trained: Path, headway: Callable[..., Server], tmp_path: Path) -> None:
    """Its probes pass and its API does not: the status names the variable that MLflow's operator must set."""
    (tmp_path / "mlflow.db").write_bytes((trained / "mlflow.db").read_bytes())
    with start_mlflow(tmp_path, free_port(), "--allowed-hosts", "mlflow.example") as mlflow_server:
        server = headway(
            "--model-uri", "models:/predictive_maintenance@champion", MLFLOW_TRACKING_URI=mlflow_server.uri
        )
        server.until(lambda: "MLFLOW_SERVER_ALLOWED_HOSTS" in (server.status()["problem"] or ""), "told")


def test_a_registry_over_tls(
    trained: Path, headway: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow's own variable says whom to trust; without it the status says that the certificate is not trusted."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    copy_registry(trained, tmp_path)
    flags = ("--uvicorn-opts", f"--ssl-keyfile {key} --ssl-certfile {certificate}")
    with start_mlflow(tmp_path, free_port(), *flags, scheme="https") as mlflow_server:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        words = ("--model-uri", "models:/predictive_maintenance@champion")
        strange = headway(*words, MLFLOW_TRACKING_URI=mlflow_server.uri)
        strange.until(lambda: "certificate is not trusted" in (strange.status()["problem"] or ""), "told")
        server = headway(
            *words, MLFLOW_TRACKING_URI=mlflow_server.uri, MLFLOW_TRACKING_SERVER_CERT_PATH=str(certificate)
        )
        server.until_ready()


@pytest.mark.audit("39")
def test_a_password_in_the_registrys_address_is_told_nobody(headway: Callable[..., Server]) -> None:
    """Neither when the registry does not answer, in the log and in the status, nor by a command."""
    address = f"http://ops:s3cret-4711@127.0.0.1:{free_port()}"
    server = headway("--model-uri", "models:/fraud@champion", MLFLOW_TRACKING_URI=address)
    server.until(lambda: "registry does not answer" in server.log.read_text(), "told")
    assert "http://***@127.0.0.1" in server.log.read_text()
    assert "4711" not in server.log.read_text() + server.get("/v1/models/fraud").text
