"""Which runtime a version needs; its module, and with it the model library, is imported only then."""

from __future__ import annotations

from collections.abc import Callable

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from serving.configuration import Configuration
from serving.runtimes.base import Runtime
from serving.schema import InputSchema

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

    return lambda model, schema, configuration: load_sklearn(model, schema)


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
