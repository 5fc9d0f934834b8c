"""A signature may leave a size open that its network does not: other sizes are the request's fault, and told as that."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from registry.versions import ModelVersion
from serving.batch import Item, Slice, compute
from serving.configuration import ModelOptions
from serving.errors import ModelFailed, RowsRefused
from serving.loading import Loaded, Loader, warm
from serving.runtimes.base import Outputs, Want
from serving.waiting import NORMAL
from tests.models import Folder
from tests.networks import FLOAT, graph, save_graph, save_network, signature

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.audit("35"), pytest.mark.filterwarnings("ignore")]
EXAMPLE = {"x": np.ones((2, 2), FLOAT)}


class Picky(torch.nn.Module):  # type: ignore[name-defined, misc]
    """Two columns, none of which may be 13."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 3)

    def forward(self, x: Any) -> Any:
        if (x == 13).any():
            raise RuntimeError("unlucky")
        return self.layer(x)


def load(path: Path, isolation: str = "none") -> Loaded:
    options = ModelOptions(allow_code=True, isolation=isolation)
    loaded = Loader(Folder(path), options, None).load(ModelVersion("m", "1"))
    loaded.example = (EXAMPLE["x"],)
    warm(loaded)
    return loaded


def ask(loaded: Loaded, *rows: list[float]) -> Outputs | Exception:
    """What a request of these rows hears that is computed alone."""
    arrays = (np.array(rows, FLOAT),)
    item = Item(arrays, len(rows), Want.LABELS, None, time.monotonic(), lambda result, seconds: None, NORMAL)
    (result,), *_ = compute(loaded.runtime, [Slice(item, 0, len(rows))])
    return result


@pytest.fixture(params=["onnx", "exported", "pickled", "process"])
def network(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Each way of a network whose signature says `[-1, -1]`."""
    signed = signature(width=-1)
    if request.param in ("onnx", "process"):
        loaded = load(
            save_graph(tmp_path / "m", graph("scores", width="k"), signed),
            "process" if request.param == "process" else "none",
        )
    elif request.param == "exported":
        loaded = load(save_network(tmp_path / "m", torch.nn.Linear(2, 3), signed))
    else:
        loaded = load(save_network(tmp_path / "m", Picky(), signed, pickled=True))
    yield loaded
    loaded.runtime.close()


def test_rows_of_another_size_are_refused(network: Loaded) -> None:
    """Too narrow or too wide; those of the right one are answered before and after."""
    for rows in ([[1.0]], [[1.0, 2.0, 3.0]], [[0.5]] * 30):
        assert isinstance(ask(network, *rows), RowsRefused)
        assert isinstance(ask(network, [1.0, 2.0]), Outputs)


def test_a_network_that_fails_at_its_own_size_has_failed(tmp_path: Path) -> None:
    """What it raises then may be about anything."""
    loaded = load(save_network(tmp_path / "m", Picky(), signature(width=-1), pickled=True))
    assert isinstance(ask(loaded, [13.0, 1.0]), ModelFailed)
    assert isinstance(ask(loaded, [13.0, 1.0, 1.0]), RowsRefused)
