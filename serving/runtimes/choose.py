"""Which runtime a version needs; its module, and with it the model library, is imported only then."""

from __future__ import annotations

from collections.abc import Callable

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from serving.configuration import Configuration
from serving.runtimes.base import Runtime
from serving.schema import InputSchema

Load = Callable[[MLmodel, InputSchema, Configuration], Runtime]


def runtime_for(model: MLmodel) -> Load:
    """What loads this version, with its module imported. Raises InvalidModel if no flavour can be served."""
    if "sklearn" in model.flavors:
        from serving.runtimes.sklearn import load_sklearn

        return lambda model, schema, configuration: load_sklearn(model, schema)
    if "pytorch" in model.flavors:
        from serving.runtimes.pytorch import load_pytorch

        return load_pytorch
    if "python_function" in model.flavors:
        from serving.runtimes.pyfunc import load_pyfunc

        return load_pyfunc
    raise InvalidModel("the version has no flavour that can be served: sklearn, pytorch or python_function")
