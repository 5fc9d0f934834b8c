"""Mosec around the pickled model: one worker, batches of MAX_ROWS requests within WAIT_MS.

MODEL=model.pkl MAX_ROWS=32 WAIT_MS=5 python mosec_app.py --address 127.0.0.1 --port PORT
"""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from mosec import Server, Worker

MAX_ROWS, WAIT_MS = int(os.environ["MAX_ROWS"]), int(os.environ["WAIT_MS"])


class Predict(Worker):  # type: ignore[misc]  # installed in an environment of its own
    """Rows of all requests of a batch go through the model in one call."""

    def __init__(self) -> None:
        super().__init__()
        self._model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())

    def forward(self, data: Any) -> Any:
        """One document, or a list of them where batches are formed."""
        if MAX_ROWS == 1:
            return {"predictions": self._model.predict(np.array(data["x"])).tolist()}
        blocks = [request["x"] for request in data]
        labels = self._model.predict(np.array([row for block in blocks for row in block]))
        ends = np.cumsum([len(block) for block in blocks])[:-1]
        return [{"predictions": part.tolist()} for part in np.split(labels, ends)]


if __name__ == "__main__":
    server = Server()
    server.append_worker(Predict, num=1, max_batch_size=MAX_ROWS, max_wait_time=WAIT_MS, route="/predict")
    server.run()
