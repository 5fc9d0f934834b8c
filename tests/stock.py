"""A program: KServe's own, unchanged `ModelServer` with a `RegistryModel` that has steps of its own.

python -m tests.stock --folder FOLDER --http_port N --grpc_port N
"""

import argparse
import asyncio
from pathlib import Path
from typing import Any

from kserve import InferRequest, ModelServer, model_server
from prometheus_client import CollectorRegistry

from monitoring.metrics import Metrics
from registry.mlflow_registry import MlflowRegistry
from registry.policies import Fixed
from serving.configuration import ModelOptions
from serving.crew import Alone
from serving.dataplane import DataPlane
from serving.errors import REASONS
from serving.fleet import Fleet, Seat
from serving.lifecycle import State
from serving.loading import Loader
from serving.manager import ModelManager
from serving.memory import resident_bytes
from serving.model import RegistryModel
from serving.named import Finder
from serving.poller import Poller
from serving.recorder import Recorder
from tests.models import Folder


class Tenfold(RegistryModel):
    """Multiplies V1 rows by ten before, and says so afterwards; Open Inference requests pass as they are."""

    async def preprocess(self, payload: Any, headers: Any = None) -> Any:
        if isinstance(payload, InferRequest):
            return payload
        return {"instances": [[10 * value for value in row] for row in payload["instances"]]}

    async def postprocess(self, result: Any, headers: Any = None, response_headers: Any = None) -> Any:
        return result | {"steps": "before and after"} if isinstance(result, dict) else result


def main(folder: str, http_port: int, grpc_port: int) -> None:
    metrics = Metrics(CollectorRegistry(), REASONS, [state.value for state in State])
    loader = Loader(Folder(Path(folder)), ModelOptions(), None)
    manager = ModelManager("sums", folder, loader, Recorder(metrics))
    registry = MlflowRegistry()
    poller = Poller(registry, Fixed(folder), manager, 60, lambda *_: None)
    fleet = Fleet({"sums": Seat(manager, poller)}, None, 30, resident_bytes, Finder(registry))
    plane = DataPlane(fleet, metrics, Alone(fleet, metrics))
    server = ModelServer(http_port=http_port, grpc_port=grpc_port)
    server.register_model(Tenfold("sums", lambda: plane))

    async def run() -> None:
        fleet.start()
        await asyncio.Event().wait()

    server.servers.append(run())
    server.start([])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--folder")
    args = parser.parse_args()
    main(args.folder, args.http_port, args.grpc_port)
