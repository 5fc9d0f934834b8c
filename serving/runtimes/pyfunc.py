"""Everything else, through MLflow's generic flavour: frames or tensors in, arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from registry.mlmodel import MLmodel
from registry.pyfunc import load_predict
from serving.configuration import Configuration
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.interpret import Interpretation
from serving.runtimes.several import promised
from serving.schema import InputSchema


class PyfuncRuntime:
    """A model behind `predict(DataFrame)`, or `predict(array or dict of arrays)` for tensor signatures."""

    def __init__(
        self,
        predict: Callable[[Any], Any],
        schema: InputSchema,
        configuration: Configuration,
        names: tuple[str, ...] = (),
    ) -> None:
        self.engine = Engine("pyfunc")
        self._predict, self._schema, self._several = predict, schema, len(names) > 1
        self._meaning = Interpretation(configuration, names)

    @property
    def classes(self) -> np.ndarray | None:
        """The classes by tag, or 0…k-1; None for regression."""
        return self._meaning.classes

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """One call for the whole batch. Several tensors in a dict are several outputs, where the signature names them."""
        answered = self._predict(self._input(arrays))
        if self._several and isinstance(answered, dict) and len(answered) > 1:
            return self._meaning.meaning(tuple(map(str, answered)), [*map(np.asarray, answered.values())], rows, want)
        return self._meaning.outputs(as_array(answered), rows, want)

    def close(self) -> None:
        """Nothing but memory is held."""

    def _input(self, arrays: tuple[np.ndarray, ...]) -> Any:
        names = self._schema.names
        if self._schema.tensors:
            unnamed = len(arrays) == 1 and self._schema.tensors[0].name is None
            return arrays[0] if unnamed else dict(zip(names, arrays, strict=True))
        if self._schema.matrix is not None:
            return pd.DataFrame(arrays[0], columns=list(names))
        return pd.DataFrame(dict(zip(names, arrays, strict=True)))


def load_pyfunc(model: MLmodel, schema: InputSchema, configuration: Configuration) -> PyfuncRuntime:
    """Loads the python_function flavour of a version whose trust has been checked."""
    return PyfuncRuntime(load_predict(model.path), schema, configuration, promised(model))


def as_array(answer: Any) -> np.ndarray:
    """What a pyfunc model answered (frame, series, list, dict of columns, array) as one array with a row per row."""
    if isinstance(answer, dict):
        answer = pd.DataFrame(answer) if len(answer) > 1 else next(iter(answer.values()))
    if isinstance(answer, pd.DataFrame):
        return np.asarray(answer.iloc[:, 0] if answer.shape[1] == 1 else answer)
    return np.asarray(answer)
