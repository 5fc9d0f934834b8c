"""Multi-layer perceptrons as a few matrix products, in scikit-learn's own order of operations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.neural_network._base import ACTIVATIONS

from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.linear import Arrays, product
from serving.runtimes.accelerated.program import Answer, Head, NotCompiled
from serving.runtimes.base import Want


class Perceptron(Arrays):
    """The layers one after the other; the library's own functions between them."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self._layers = list(zip(model.coefs_, model.intercepts_, strict=True))
        self._hidden, self._last = ACTIVATIONS[model.activation], ACTIVATIONS[model.out_activation_]
        self._sparse = layout.sparse
        self._classes = getattr(model, "classes_", None)
        if self._classes is not None and model._label_binarizer.y_type_.startswith("multilabel"):
            raise NotCompiled("a network of several labels is not compiled")

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """One number per row and target; labels and probabilities of classifiers."""
        out = self._forward(x)
        one = out.ravel() if out.shape[1] == 1 else out
        if self._classes is None:
            return one, None
        if one.ndim == 1:
            return self._classes.take(one > 0.5), np.vstack([1 - one, one]).T
        return self._classes.take(out.argmax(axis=1)), out

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Probabilities: a perceptron has no decision function."""
        out = self._forward(x)
        return out.ravel() if out.shape[1] == 1 else out

    def _forward(self, x: np.ndarray) -> np.ndarray:
        for i, (weights, bias) in enumerate(self._layers):
            x = product(x, weights, sparse=self._sparse and i == 0)
            x += bias
            (self._last if i == len(self._layers) - 1 else self._hidden)(x)
        return x


HEADS: dict[type, Callable[[Any, Layout], Head]] = {MLPClassifier: Perceptron, MLPRegressor: Perceptron}
