"""What the raw output of a network or a pyfunc model means, as its tags say: task, activation, classes."""

from __future__ import annotations

import numpy as np

from registry.errors import InvalidModel
from serving.configuration import Configuration
from serving.runtimes.base import Outputs, Want


class Interpretation:
    """Turns raw outputs `[n]`, `[n, k]` into labels and probabilities. Unsaid: regression, raw is the prediction."""

    def __init__(self, configuration: Configuration) -> None:
        self._activation = configuration.activation
        self._classes = configuration.classes
        self.is_classifier = configuration.task == "classification"
        #: known from the tag; else 0…k-1, where two stand for as many as the first output has
        self.classes: np.ndarray | None = self._named(2) if self.is_classifier else None

    def outputs(self, raw: np.ndarray, rows: int, want: Want) -> Outputs:
        """Labels, probabilities and raw of one batch."""
        if not self.is_classifier:
            return Outputs(rows, labels=_flat(raw), raw=raw)
        probabilities = self.probabilities(raw)
        classes = self._classes_of(probabilities.shape[1])
        labels = classes[probabilities.argmax(axis=1)] if Want.LABELS in want else None
        return Outputs(rows, labels, probabilities, raw)

    def probabilities(self, raw: np.ndarray) -> np.ndarray:
        """Probabilities `[n, classes]`, float64. One column p of a sigmoid (or none) gives (1-p, p)."""
        scores = np.asarray(raw, dtype=np.float64).reshape(len(raw), -1)
        if self._activation == "sigmoid":
            scores = 1 / (1 + np.exp(-scores))
        elif self._activation == "softmax":
            exponents = np.exp(scores - scores.max(axis=1, keepdims=True))
            scores = exponents / exponents.sum(axis=1, keepdims=True)
        return np.hstack([1 - scores, scores]) if scores.shape[1] == 1 else scores

    def _classes_of(self, k: int) -> np.ndarray:
        """The classes of an output of `k` columns. Raises InvalidModel if the tag names another number."""
        if self.classes is None or len(self.classes) != k:
            self.classes = self._named(k)
            if len(self.classes) != k:
                raise InvalidModel(f"the tag headway.classes names {len(self.classes)} classes, the model has {k}")
        return self.classes

    def _named(self, k: int) -> np.ndarray:
        return np.arange(k) if self._classes is None else np.array(self._classes)


def _flat(raw: np.ndarray) -> np.ndarray:
    """`[n, 1]` as `[n]`: one prediction per row."""
    return raw[:, 0] if raw.ndim == 2 and raw.shape[1] == 1 else raw
