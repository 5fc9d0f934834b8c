"""PyTorch: exported programs (`pt2`), or pickled modules with the operator's permission."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from registry.pyfunc import add_code
from serving.configuration import Configuration
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.interpret import Interpretation
from serving.schema import InputSchema

log = logging.getLogger("headway.pytorch")


@dataclass(frozen=True, slots=True)
class BatchSize:
    """How many rows a network takes in one call: an exported one may be bound to the batch of its example."""

    least: int = 1
    most: int | None = None

    def chunks(self, rows: int) -> list[slice]:
        """The rows of a batch in calls of at most `most`."""
        step = self.most or rows
        return [slice(i, i + step) for i in range(0, rows, step)]

    def padded(self, chunk: torch.Tensor) -> torch.Tensor:
        """The chunk with its last row repeated, if it is shorter than `least`."""
        lack = self.least - len(chunk)
        return chunk if lack <= 0 else torch.cat([chunk, chunk[-1:].expand(lack, *chunk.shape[1:])])


class TorchRuntime:
    """One network. Columns go in as one matrix `[n, k]` of the network's own float type; tensors as they are."""

    def __init__(
        self, module: Any, schema: InputSchema, configuration: Configuration, size: BatchSize = BatchSize()
    ) -> None:
        self.engine = Engine("torch")
        self._module, self._size = module, size
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
        """One forward pass without gradients, or as many as the network's batch size asks for."""
        inputs = self._inputs(arrays)
        with torch.inference_mode():
            parts = [self._forward([x[chunk] for x in inputs]) for chunk in self._size.chunks(rows)]
        return self._meaning.outputs(parts[0] if len(parts) == 1 else np.concatenate(parts), rows, want)

    def close(self) -> None:
        """Nothing but memory is held."""

    def _forward(self, chunk: list[torch.Tensor]) -> np.ndarray:
        output = self._module(*[self._size.padded(x) for x in chunk])
        if not isinstance(output, torch.Tensor):
            raise InvalidModel("the network must answer one tensor")
        answer: np.ndarray = output.numpy()
        return answer[: len(chunk[0])] if len(chunk[0]) < self._size.least else answer

    def _inputs(self, arrays: tuple[np.ndarray, ...]) -> list[torch.Tensor]:
        if not self._columns:
            return [torch.from_numpy(np.ascontiguousarray(a)) for a in arrays]
        matrix = arrays[0] if len(arrays) == 1 and arrays[0].ndim == 2 else np.column_stack(arrays)
        return [torch.from_numpy(np.ascontiguousarray(matrix)).to(self._dtype)]


def load_pytorch(model: MLmodel, schema: InputSchema, configuration: Configuration) -> TorchRuntime:
    """Loads the pytorch flavour of a version whose trust has been checked."""
    add_code(model.path, model.flavor("pytorch"))
    if saved_as_pt2(model):
        program = torch.export.load(_pt2(model))
        return TorchRuntime(program.module(), schema, configuration, batch_size(program))
    module = torch.load(_folder(model) / "model.pth", map_location="cpu", weights_only=False).eval()
    return TorchRuntime(module, schema, configuration)


def batch_size(program: Any) -> BatchSize:
    """What the guards of an exported program say of the first dimension of its inputs. MLflow's own export is bound to
    one row if its example had one; PyTorch tells it by an assertion, at the first call of another size."""
    least, most = 1, None
    for node in program.graph.find_nodes(op="placeholder"):
        shape: Any = node.meta["val"].shape if node.name in program.graph_signature.user_inputs else ()
        if not len(shape):
            continue
        low, high = _bounds(shape[0], program.range_constraints)
        least = max(least, low)
        most = high if most is None else min(most, high or most)
    if most is not None:
        log.warning("the network is exported for a fixed number of rows", extra={"least": least, "most": most})
    return BatchSize(least, most)


def _bounds(size: Any, constraints: Mapping[Any, Any]) -> tuple[int, int | None]:
    """A plain number is a fixed size. Two as the lower bound is what torch writes for any: one row works too."""
    if isinstance(size, int):
        return size, size
    bounds = constraints.get(size.node.expr)
    if bounds is None:
        return 1, None
    low = int(bounds.lower)
    return (low if low > 2 else 1), int(bounds.upper) if bounds.upper.is_Integer else None


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
