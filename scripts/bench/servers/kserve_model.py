"""A minimal model on KServe's own SDK: what its examples do, with its defaults.

python -m scripts.bench.servers.kserve_model FOLDER PORT GRPC_PORT [--proba]
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np

from scripts.bench.experiments import NAME


def network(path: Path) -> Any:
    """A function from rows `[n, k]` to the network's outputs."""
    import torch

    module = torch.load(path, weights_only=False)

    def predict(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(module(torch.from_numpy(np.asarray(x, dtype=np.float32))).numpy())

    return predict


def serve(folder: Path, port: int, grpc_port: int, *, proba: bool) -> None:
    """Serves until killed."""
    from kserve import InferOutput, InferResponse, Model, ModelServer

    pickled = folder / "model.pkl"
    estimator: Any = pickle.loads(pickled.read_bytes()) if pickled.exists() else None
    predict = estimator.predict if estimator is not None else network(folder / "network.pt")

    class Minimal(Model):  # type: ignore[misc]  # kserve ships no types
        """A list of rows or one tensor in, the model's answer out."""

        def load(self) -> bool:
            self.ready = True
            return True

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:
            if isinstance(payload, dict):
                x = np.array(payload["instances"])
                answer = {"predictions": predict(x).tolist()}
                return {**answer, "probabilities": estimator.predict_proba(x).tolist()} if proba else answer
            labels = predict(payload.inputs[0].as_numpy())
            kind = "INT64" if labels.dtype == np.int64 else "FP32"
            output = InferOutput("predict", list(labels.shape), kind)
            output.set_data_from_numpy(labels, binary_data=payload.use_binary_outputs)
            return InferResponse(payload.id, self.name, [output], use_binary_outputs=payload.use_binary_outputs)

    model = Minimal(NAME)
    model.load()
    ModelServer(http_port=port, grpc_port=grpc_port, workers=1).start([model])


def main() -> None:
    """Serves the folder's model."""
    arguments = sys.argv[1:]
    sys.argv = sys.argv[:1]  # the SDK parses them at import
    serve(Path(arguments[0]), int(arguments[1]), int(arguments[2]), proba="--proba" in arguments)


if __name__ == "__main__":
    main()
