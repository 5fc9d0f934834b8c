"""LitServe around the pickled model: one worker, batches of MAX_ROWS requests within WAIT_MS.

MODEL=model.pkl MAX_ROWS=32 WAIT_MS=5 PORT=8000 python litserve_app.py
"""

import os
import pickle
from pathlib import Path
from typing import Any

import litserve
import numpy as np

MAX_ROWS, WAIT_MS = int(os.environ["MAX_ROWS"]), int(os.environ["WAIT_MS"])


class Predict(litserve.LitAPI):  # type: ignore[misc]  # installed in an environment of its own
    """Rows of all requests of a batch go through the model in one call."""

    def setup(self, device: str) -> None:
        """Loads the model."""
        self._model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())

    def decode_request(self, request):  # type: ignore[no-untyped-def]  # an annotation would become FastAPI's schema
        """Rows `[n, k]`."""
        return np.array(request["x"])

    def batch(self, inputs: list[np.ndarray]) -> Any:
        """All rows, and where each request ends."""
        return np.concatenate(inputs), np.cumsum([len(block) for block in inputs])[:-1]

    def predict(self, x: Any) -> Any:
        """Labels."""
        if MAX_ROWS == 1:
            return self._model.predict(x)
        rows, ends = x
        return np.split(self._model.predict(rows), ends)

    def unbatch(self, output: Any) -> list[Any]:
        """One answer per request."""
        return list(output)

    def encode_response(self, output):  # type: ignore[no-untyped-def]  # the same
        """An answer."""
        return {"predictions": output.tolist()}


if __name__ == "__main__":
    api = Predict(max_batch_size=MAX_ROWS, batch_timeout=WAIT_MS / 1000)
    server = litserve.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
