"""What a version says of its rows and of its batches cannot make the server allocate more than the operator allows."""

from pathlib import Path

import mlflow
import numpy as np
import pytest

from registry.versions import ModelVersion
from serving.configuration import ModelOptions, resolve
from serving.loading import LARGEST_BATCH, Loader
from tests.crafted import Spot
from tests.models import Folder, columns, linear

ASKED = {"headway.max_rows": "60000"}


@pytest.mark.audit("30b")
@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (ModelOptions(), 2000),
        (ModelOptions(defaults={"max_queue": 100}), 100),
        (ModelOptions(entry={"max_queue": 50}, defaults={"max_queue": 100}), 50),
        (ModelOptions(entry={"max_rows": 60000}), 60000),
        (ModelOptions(defaults={"max_rows": 8}), 2000),
    ],
)
def test_a_version_asks_for_no_more_rows_than_may_wait(options: ModelOptions, rows: int) -> None:
    """By tag or by metadata; what the operator says holds as it is."""
    assert resolve(options, ASKED, {}).limits.max_rows == rows
    assert resolve(options, {}, ASKED).limits.max_rows == rows


@pytest.mark.audit("30b")
@pytest.mark.parametrize(
    ("width", "entry", "rows"), [(200, {}, 2000), (2000, {"max_rows": 60000}, LARGEST_BATCH // 16000)]
)
def test_a_batch_takes_no_more_memory_than_it_may(tmp_path: Path, width: int, entry: dict[str, int], rows: int) -> None:
    """Wide rows make shorter batches, whoever asked for long ones."""
    spot = Spot(tmp_path)
    signature = columns(*((f"c{i}", "double") for i in range(width)))
    spot.save(mlflow.sklearn, linear(*np.ones(width)), serialization_format="skops", signature=signature)
    version = ModelVersion("m", "1", configuration=tuple(ASKED.items()))
    loaded = Loader(Folder(spot.model), ModelOptions(entry=entry, accelerate="off"), None).load(version)
    assert loaded.configuration.limits.max_rows == rows
