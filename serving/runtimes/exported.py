"""Networks exported by torch.export: loaded, placed on a device, and the batches they are bound to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from registry.errors import InvalidModel
from serving.pt2.fitting import fitted

log = logging.getLogger("headway.pytorch")
#: PyTorch's loader keeps what it does in a global, and fails if a second one begins meanwhile.
_alone, LONGEST_WAIT = threading.Lock(), 600.0
#: What filling up a short batch may take, in bytes. How many rows a network takes is what its file says.
LARGEST_FILLED = 1 << 30


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
        """The chunk with its last row repeated, if it is shorter than `least`. Raises InvalidModel for far too many rows."""
        lack = self.least - len(chunk)
        if lack > 0 and self.least * chunk[:1].nbytes > LARGEST_FILLED:
            raise InvalidModel(
                f"the network takes no fewer than {self.least} rows, which are over {LARGEST_FILLED} bytes"
            )
        return chunk if lack <= 0 else torch.cat([chunk, chunk[-1:].expand(lack, *chunk.shape[1:])])


def load_exported(file: Path, device: torch.device) -> tuple[Any, BatchSize]:
    """The network on its device, and its batches."""
    if not _alone.acquire(timeout=LONGEST_WAIT):
        raise InvalidModel("another exported network has been loading for ten minutes, and PyTorch loads one at a time")
    try:
        program = torch.export.load(file)
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
        return fitted(program.module()), batch_size(program)
    finally:
        _alone.release()


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
