"""BentoML around the pickled model: one worker, its adaptive batcher with batches of MAX_ROWS.

MODEL=model.pkl MAX_ROWS=32 bentoml serve bentoml_app:Predict --port PORT --host 127.0.0.1
"""

import os
import pickle
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

MAX_ROWS = int(os.environ["MAX_ROWS"])
#: It learns itself how long to wait; `max_latency_ms` stays at its default, since it sheds what would take longer.
BATCHING: dict[str, Any] = {} if MAX_ROWS == 1 else {"batchable": True, "max_batch_size": MAX_ROWS}


@bentoml.service(workers=1, traffic={"timeout": 60}, metrics={"enabled": True})
class Predict:
    """Rows of all requests of a batch go through the model in one call."""

    def __init__(self) -> None:
        self._model = pickle.loads(Path(os.environ["MODEL"]).read_bytes())

    @bentoml.api(**BATCHING)  # type: ignore[untyped-decorator]  # installed in an environment of its own
    def predict(self, x: np.ndarray) -> list[int]:
        """Labels `[n]` of rows `[n, k]`."""
        return self._model.predict(x).tolist()  # type: ignore[no-any-return]
