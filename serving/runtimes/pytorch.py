"""PyTorch: exported programs (`pt2`), or pickled modules with the operator's permission."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from registry.pyfunc import add_code
from serving.configuration import Configuration
from serving.runtimes.base import Outputs, Want
from serving.runtimes.interpret import Interpretation
from serving.schema import InputSchema


class TorchRuntime:
    """One network. Columns go in as one matrix `[n, k]` of the network's own float type; tensors as they are."""

    def __init__(self, module: Any, schema: InputSchema, configuration: Configuration) -> None:
        self._module = module
        self._columns = bool(schema.columns)
        self._dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
        self._meaning = Interpretation(configuration)
        if self._columns and not schema.all_numeric:
            raise InvalidModel("a PyTorch network takes numeric columns or tensors")

    @property
    def classes(self) -> np.ndarray | None:
        """The classes by tag, or 0…k-1; None for regression."""
        return self._meaning.classes

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """One forward pass without gradients."""
        with torch.inference_mode():
            output = self._module(*self._inputs(arrays))
        if not isinstance(output, torch.Tensor):
            raise InvalidModel("the network must answer one tensor")
        return self._meaning.outputs(output.numpy(), rows, want)

    def close(self) -> None:
        """Nothing but memory is held."""

    def _inputs(self, arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
        if not self._columns:
            return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        matrix = arrays[0] if len(arrays) == 1 and arrays[0].ndim == 2 else np.column_stack(arrays)
        return [torch.from_numpy(np.ascontiguousarray(matrix)).to(self._dtype)]


def load_pytorch(model: MLmodel, schema: InputSchema, configuration: Configuration) -> TorchRuntime:
    """Loads the pytorch flavour of a version whose trust has been checked."""
    add_code(model.path, model.flavor("pytorch"))
    if saved_as_pt2(model):
        module = torch.export.load(_pt2(model)).module()
    else:
        module = torch.load(_folder(model) / "model.pth", map_location="cpu", weights_only=False).eval()
    return TorchRuntime(module, schema, configuration)


def saved_as_pt2(model: MLmodel) -> bool:
    """Whether the version was exported; what the loader opens decides, not what the MLmodel file claims."""
    return _pt2(model).is_file()


def _pt2(model: MLmodel) -> Path:
    return _folder(model) / "model.pt2"


def _folder(model: MLmodel) -> Path:
    folder = (model.path / str(model.flavor("pytorch").get("model_data", "data"))).resolve()
    if not folder.is_relative_to(model.path.resolve()):
        raise InvalidModel("the MLmodel file names a folder outside the version")
    return folder


def pt2_reasons(model: MLmodel) -> Iterator[str]:
    """Why the archive must not be loaded; nothing if it may."""
    from registry.archives import check_pt2

    try:
        check_pt2(_pt2(model))
    except InvalidModel as error:
        yield str(error)
