"""Ray Serve around the pickled model: one replica, batches of MAX_ROWS requests within WAIT_MS.

MODEL=model.pkl MAX_ROWS=32 WAIT_MS=5 PORT=8000 python ray_app.py
"""

import os
import pickle
import signal
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request

MAX_ROWS, WAIT_MS = int(os.environ["MAX_ROWS"]), int(os.environ["WAIT_MS"])


@serve.deployment(max_ongoing_requests=1024, ray_actor_options={"num_cpus": 0})
class Predict:
    """Rows of all requests of a batch go through the model in one call."""

    def __init__(self, model: str) -> None:
        self._model = pickle.loads(Path(model).read_bytes())

    @serve.batch(max_batch_size=MAX_ROWS, batch_wait_timeout_s=WAIT_MS / 1000)
    async def together(self, blocks: list[Any]) -> list[Any]:
        """One list of labels per request."""
        labels = self._model.predict(np.array([row for block in blocks for row in block]))
        return [part.tolist() for part in np.split(labels, np.cumsum([len(block) for block in blocks])[:-1])]

    async def __call__(self, request: Request) -> dict[str, Any]:
        """An answer."""
        rows = (await request.json())["x"]
        if MAX_ROWS == 1:
            return {"predictions": self._model.predict(np.array(rows)).tolist()}
        return {"predictions": await self.together(rows)}


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: ray.shutdown() or os._exit(0))
    ray.init(include_dashboard=False, num_cpus=2, configure_logging=True, log_to_driver=False)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(os.environ["PORT"])))
    serve.run(Predict.bind(os.environ["MODEL"]), route_prefix="/predict")  # type: ignore[attr-defined]  # the decorator's
    signal.pause()
