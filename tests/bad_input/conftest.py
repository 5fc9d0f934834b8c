"""One server for all tests of bad input."""

import json
from collections.abc import Iterator

import pytest

from tests.bad_input.asking import MODEL, check_alive
from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server, start_headway


@pytest.fixture(scope="package", params=["protocol", "asgi"])
def server(
    request: pytest.FixtureRequest, shared: MlflowServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """On both lanes: serves the champion, which is version 1, and a regression whose answers may be infinite or NaN."""
    register(shared.uri, "steep", skops(linear(10.0, 10.0)), columns(("a", "double"), ("b", "double")))
    file = tmp_path_factory.mktemp("config") / "headway.yaml"
    steep = {"name": "steep", "uri": "models:/steep/1", "timeout_ms": 60_000}
    models = [{"name": MODEL, "uri": f"models:/{MODEL}@champion"}, steep]
    file.write_text(json.dumps({"models": models}))
    server = start_headway(
        file.parent / "log", "--config", str(file), MLFLOW_TRACKING_URI=shared.uri, HEADWAY_SERVER__LANE=request.param
    )
    server.until_ready()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def alive(server: Server) -> Iterator[None]:
    """Whatever a test sends, the server is live and ready afterwards, and answers a good request."""
    yield
    check_alive(server)
