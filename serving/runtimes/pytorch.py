"""PyTorch: exported programs (`pt2`), or pickled modules with the operator's permission."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from registry.pyfunc import add_code
from serving.configuration import Configuration
from serving.examples import blank_rows, example_rows
from serving.pt2.archive import broken, code_in
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.exported import BatchSize, load_exported
from serving.runtimes.interpret import Interpretation
from serving.runtimes.mapped import map_weights
from serving.runtimes.several import by_number, promised
from serving.runtimes.sizes import Sizes
from serving.schema import InputSchema

TOLERANCE = 1e-6
_ANY_SIZE = BatchSize()
_ONE = by_number(1)
_CPU = torch.device("cpu")
_AUTOCAST = {"none": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TorchRuntime:
    """One network on one device. Columns go in as one matrix `[n, k]` of the network's own float type; tensors as they are."""

    def __init__(
        self,
        network: Any,
        schema: InputSchema,
        configuration: Configuration,
        size: BatchSize = _ANY_SIZE,
        device: torch.device = _CPU,
        names: tuple[str, ...] = (),
    ) -> None:
        self.engine = Engine("torch", parallel=True)
        self.network, self._size, self._device = network, size, device
        self._columns = bool(schema.columns)
        self._dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
        self._autocast = _AUTOCAST[configuration.torch.autocast]
        self._meaning, self._sizes = Interpretation(configuration, names), Sizes()
        if self._columns and not schema.all_numeric:
            raise InvalidModel("a PyTorch network takes numeric columns or tensors")

    @property
    def classes(self) -> np.ndarray | None:
        """The classes by tag, or 0…k-1; None for regression."""
        return self._meaning.classes

    @property
    def tolerance(self) -> float:
        """How far two computations of the same answer may be apart: a millionth, or what autocast's type can tell apart."""
        return TOLERANCE if self._autocast is None else float(torch.finfo(self._autocast).eps)

    def through(self, network: Any, engine: Engine) -> TorchRuntime:
        """The same runtime over another form of its network."""
        twin = copy(self)
        twin.network, twin.engine = network, engine
        return twin

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """One forward pass without gradients, or as many as the network's batch size asks for."""
        try:
            own, answered = self._answer(arrays, rows)
        except (RuntimeError, AssertionError) as error:  # the latter is what an exported network's guards raise
            raise self._sizes.blame(arrays, error)  # noqa: B904  its cause is the error, or it is the error
        self._sizes.taken(arrays)
        return self._meaning.meaning(own, answered, rows, want)

    def _answer(self, arrays: tuple[np.ndarray, ...], rows: int) -> tuple[tuple[str, ...], list[np.ndarray]]:
        inputs = self._inputs(arrays)
        with torch.inference_mode(), self._casting():
            parts = [self._forward([x[chunk] for x in inputs]) for chunk in self._size.chunks(rows)]
        own, answered = parts[0]
        if len(parts) > 1:
            answered = [np.concatenate(pieces) for pieces in zip(*[more for _, more in parts], strict=True)]
        return own, answered

    def _casting(self) -> AbstractContextManager[None]:
        return nullcontext() if self._autocast is None else torch.autocast(self._device.type, self._autocast)

    def close(self) -> None:
        """Nothing but memory is held."""

    def _forward(self, chunk: list[torch.Tensor]) -> tuple[tuple[str, ...], list[np.ndarray]]:
        own, tensors = _outputs(self.network(*[self._size.padded(x) for x in chunk]))
        arrays = [_array(tensor) for tensor in tensors]
        padded = len(chunk[0]) < self._size.least
        return own, [array[: len(chunk[0])] for array in arrays] if padded else arrays

    def _inputs(self, arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
        if not self._columns:
            return [torch.from_numpy(np.ascontiguousarray(a)).to(self._device) for a in arrays]
        matrix = arrays[0] if len(arrays) == 1 and arrays[0].ndim == 2 else np.column_stack(arrays)
        return [torch.from_numpy(np.ascontiguousarray(matrix)).to(self._device, self._dtype)]


def _outputs(answered: Any) -> tuple[tuple[str, ...], list[torch.Tensor]]:
    """The tensors that a network answered, and its own names for them."""
    if isinstance(answered, torch.Tensor):
        return _ONE, [answered]
    if isinstance(answered, Mapping):
        names, tensors = tuple(map(str, answered)), list(answered.values())
    else:
        tensors = list(answered) if isinstance(answered, tuple | list) else []
        names = getattr(answered, "_fields", None) or by_number(len(tensors))
    if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors):
        raise InvalidModel("the network must answer a tensor, or a tuple, a list or a mapping of tensors")
    return names, tensors


def _array(tensor: torch.Tensor) -> np.ndarray:
    known = tensor.cpu() if tensor.dtype != torch.bfloat16 else tensor.cpu().float()  # NumPy has no bfloat16
    array: np.ndarray = known.numpy()
    return array


def load_pytorch(model: MLmodel, schema: InputSchema, configuration: Configuration) -> TorchRuntime:
    """Loads the pytorch flavour of a version whose trust has been checked. Raises InvalidModel without the device."""
    add_code(model.path, model.flavor("pytorch"))
    device = device_of(configuration.torch.device)
    if saved_as_pt2(model):
        file = _pt2(model)
        network, size = load_exported(file, device)
    else:
        file = _folder(model) / "model.pth"
        network, size = torch.load(file, map_location=device, weights_only=False).to(device).eval(), _ANY_SIZE
    if configuration.torch.shared and device.type == "cpu":
        map_weights(network, file)
    runtime = TorchRuntime(network, schema, configuration, size, device, promised(model))
    if not configuration.torch.compile:
        return runtime
    from serving.runtimes.compiled import compiled  # it pulls in the compiler

    return compiled(runtime, example_rows(model, schema) or blank_rows(schema))


def device_of(name: str) -> torch.device:
    """The device of a setting; `auto` is a GPU if there is one. Raises InvalidModel."""
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise InvalidModel("torch.device is cuda, and PyTorch sees no GPU here: set it to auto or cpu")
    return torch.device("cuda" if there and name != "cpu" else "cpu")


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
    """Why the archive must not be loaded, whatever is allowed; nothing if it may."""
    why = broken(_pt2(model))
    if why is not None:
        yield why


def pt2_code(model: MLmodel) -> Iterator[str]:
    """The texts of the archive that PyTorch would evaluate and that are not what its exporter writes, by their keys."""
    yield from code_in(_pt2(model))
