"""What the raw output of a network or a pyfunc model means, as its tags say: task, activation, classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from registry.errors import InvalidModel
from serving.configuration import Configuration
from serving.runtimes.base import Outputs, Want
from serving.runtimes.several import choose, listed


class Interpretation:
    """Turns raw outputs `[n]`, `[n, k]` into labels and probabilities. Unsaid: regression, raw is the prediction."""

    def __init__(self, configuration: Configuration, names: tuple[str, ...] = ()) -> None:
        """`names` are those of the signature's outputs, where it has any."""
        self._promised = names
        self._activation = configuration.activation
        self._classes = configuration.classes
        self.is_classifier = configuration.task == "classification"
        #: known from the tag; else 0…k-1, where two stand for as many as the first output has
        self.classes: np.ndarray | None = self._named(2) if self.is_classifier else None

    def choose(self, own: tuple[str, ...]) -> tuple[tuple[int, str], ...]:
        """Which outputs of a network are answered, and their names. Raises InvalidModel for a classifier with several."""
        chosen = choose(own, self._promised)
        if self.is_classifier and len(chosen) > 1:
            raise InvalidModel(
                f"the tag headway.task says classification, which is of one output, and the network has {len(chosen)}: "
                f"{listed([name for _, name in chosen])}; let the signature's outputs name the one, or drop the tag"
            )
        return chosen

    def meaning(self, own: tuple[str, ...], answered: Sequence[np.ndarray], rows: int, want: Want) -> Outputs:
        """What all the outputs of a network mean, whose names are its `own`: one is interpreted, several are as they are."""
        chosen = self.choose(own)
        if len(chosen) == 1:
            return self.outputs(answered[chosen[0][0]], rows, want)
        return Outputs(rows, named={name: _of_rows(name, answered[place], rows) for place, name in chosen})

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


def _of_rows(name: str, array: np.ndarray, rows: int) -> np.ndarray:
    if array.ndim == 0 or len(array) != rows:
        raise InvalidModel(
            f"the network's output {name[:64]!r} has not one row for each of {rows}; "
            "what the signature's outputs do not name is left out"
        )
    return array


def _flat(raw: np.ndarray) -> np.ndarray:
    """`[n, 1]` as `[n]`: one prediction per row."""
    return raw[:, 0] if raw.ndim == 2 and raw.shape[1] == 1 else raw
