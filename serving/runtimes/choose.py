"""Which runtime a version needs; its module, and with it the model library, is imported only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from serving.configuration import Configuration
from serving.examples import blank_rows, example_rows
from serving.runtimes.base import Runtime
from serving.schema import InputSchema

if TYPE_CHECKING:
    from serving.runtimes.sklearn import SklearnRuntime

Load = Callable[[MLmodel, InputSchema, Configuration], Runtime]
NO_FLAVOR = "the version has no flavour that can be served: sklearn, pytorch, onnx or python_function"


def flavor_of(model: MLmodel) -> str | None:
    """The flavour that is served, or None if there is none."""
    return next((name for name in _RUNTIMES if name in model.flavors), None)


def runtime_for(model: MLmodel) -> Load:
    """What loads this version, with its module imported. Raises InvalidModel if no flavour can be served."""
    flavor = flavor_of(model)
    if flavor is None:
        raise InvalidModel(NO_FLAVOR)
    return _RUNTIMES[flavor]()


def _sklearn() -> Load:
    from serving.runtimes.sklearn import load_sklearn

    return lambda model, schema, configuration: _accelerated(load_sklearn(model, schema), model, schema, configuration)


def accelerates(model: MLmodel) -> bool:
    """Whether acceleration is tried. Versions that bring code are left as they are."""
    return flavor_of(model) == "sklearn" and not any(conf.get("code") for conf in model.flavors.values())


def _accelerated(native: SklearnRuntime, model: MLmodel, schema: InputSchema, configuration: Configuration) -> Runtime:
    """The runtime, or a faster one that was proved to answer the same."""
    if not (configuration.accelerate and accelerates(model)):
        return native
    from serving.runtimes.accelerated.accelerate import accelerated

    return accelerated(native, schema, example_rows(model, schema) or blank_rows(schema))


def _pytorch() -> Load:
    from serving.runtimes.pytorch import load_pytorch

    return load_pytorch


def _onnx() -> Load:
    from serving.runtimes.onnx import load_onnx

    return load_onnx


def _pyfunc() -> Load:
    from serving.runtimes.pyfunc import load_pyfunc

    return load_pyfunc


#: In the order in which they are chosen.
_RUNTIMES: dict[str, Callable[[], Load]] = {
    "sklearn": _sklearn, "pytorch": _pytorch, "onnx": _onnx, "python_function": _pyfunc,
}  # fmt: skip
