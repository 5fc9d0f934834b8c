"""From a fitted estimator to a program, by exact types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline

from serving.runtimes.accelerated.prepare import in_turn
from serving.runtimes.accelerated.program import Head, NotCompiled, Program


def compile_estimator(estimator: Any, dtype: np.dtype[Any], *, block: bool) -> Program:
    """The program of an estimator for matrices of `dtype`. Raises NotCompiled with the reason.

    A subclass is not what it derives from: it may have overridden anything, so `type(x) is` decides.
    """
    before, model = split(estimator)
    compile_head = _heads(model).get(type(model))
    if compile_head is None:
        raise NotCompiled(f"{type(model).__name__[:64]} is not among the models that are compiled")
    return Program(in_turn(before, dtype, block=block), compile_head(model))


def _heads(model: Any) -> Mapping[type, Callable[[Any], Head]]:
    """Those of the model's own corner of scikit-learn; the others need not be imported."""
    if type(model).__module__.startswith(("sklearn.ensemble", "sklearn.tree")):
        from serving.runtimes.accelerated.trees import TREES

        return TREES
    from serving.runtimes.accelerated.linear import LINEAR

    return LINEAR


def split(estimator: Any) -> tuple[list[Any], Any]:
    """The preprocessing steps of a pipeline, and the model at its end."""
    if type(estimator) is not Pipeline:
        return [], estimator
    *before, (_, last) = estimator.steps
    inner, model = split(last)
    return [step for _, step in before] + inner, model
