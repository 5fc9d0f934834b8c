"""From a fitted estimator to a program, by exact types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV
from sklearn.pipeline import Pipeline

from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.prepare import in_turn
from serving.runtimes.accelerated.program import Head, NotCompiled, Program

Compile = Callable[[Any, Layout], Head]
#: The compiled models by their corner of scikit-learn: modules with `HEADS`. Other corners need not be imported.
_CORNERS = {
    "sklearn.svm": ("linear", "kernels"),
    "sklearn.neighbors": ("kernels",),
    "sklearn.ensemble": ("trees",),
    "sklearn.tree": ("trees",),
    "sklearn.neural_network": ("network",),
    "sklearn.calibration": ("calibrated",),
}


def compile_estimator(estimator: Any, layout: Layout) -> Program:
    """The program of an estimator for matrices of this layout. Raises NotCompiled with the reason.

    A subclass is not what it derives from: it may have overridden anything, so `type(x) is` decides.
    """
    before, model = split(estimator)
    compile_head = _head_of(model)
    prepare, prepared = in_turn(before, layout)
    if prepared.strings:
        raise NotCompiled("strings that no encoder turns into numbers are not compiled")
    return Program(prepare, compile_head(model, prepared))


def _head_of(model: Any) -> Compile:
    corners = next((c for start, c in _CORNERS.items() if type(model).__module__.startswith(start)), ("linear",))
    for corner in corners:
        heads: Mapping[type, Compile] = import_module(f"serving.runtimes.accelerated.{corner}").HEADS
        if type(model) in heads:
            return heads[type(model)]
    raise NotCompiled(f"{type(model).__name__[:64]} is not among the models that are compiled")


def split(estimator: Any) -> tuple[list[Any], Any]:
    """The preprocessing steps of a pipeline, and the model at its end. What only hands on to an estimator is left out."""
    if type(estimator) in (GridSearchCV, RandomizedSearchCV):
        return split(estimator.best_estimator_)
    if type(estimator) is FrozenEstimator:
        return split(estimator.estimator)
    if type(estimator) is not Pipeline:
        return [], estimator
    *before, (_, last) = estimator.steps
    inner, model = split(last)
    return [step for _, step in before] + inner, model
