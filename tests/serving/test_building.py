"""What a version's batcher is built with: the operator's limits, as far as the engine goes along."""

import asyncio
import threading
import time

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from monitoring.metrics import Metrics
from registry.mlmodel import Column, Signature
from registry.versions import ModelVersion
from serving.admission import BatchingLimits
from serving.building import build_batcher
from serving.configuration import Configuration
from serving.errors import REASONS
from serving.lifecycle import State
from serving.loading import Loaded
from serving.recorder import Recorder
from serving.runtimes.base import Engine, Outputs, Want
from serving.schema import compile_schema
from serving.servable import Servable

SIGNATURE = Signature(inputs=(Column("x", "double"),), outputs=())


class Counting:
    """A runtime that notes how many calls were in it at most."""

    classes = None

    def __init__(self, *, parallel: bool) -> None:
        self.engine = Engine("counting", parallel=parallel)
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(0.02)
        with self._lock:
            self.inside -= 1
        return Outputs(rows, arrays[0][:, 0])

    def close(self) -> None:
        """Nothing is held."""


@pytest.mark.parametrize(("parallel", "together"), [(True, 3), (False, 1)])
async def test_concurrency_holds_for_engines_that_allow_it(
    parallel: bool, together: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Others get one batch at a time, and the log says so."""
    runtime = Counting(parallel=parallel)
    limits = BatchingLimits(max_rows=1, concurrency=3, inline_below_ms=1e9)
    loaded = Loaded(runtime, compile_schema(SIGNATURE), SIGNATURE, Configuration(limits, None))
    metrics = Metrics(CollectorRegistry(), REASONS, [s.value for s in State])
    batcher = build_batcher(Servable("m", ModelVersion("m", "1")), loaded, 10.0, Recorder(metrics))
    asked = (batcher.predict((np.array([[float(i)]]),), 1, Want.LABELS, None) for i in range(9))
    heard = [outputs.labels for outputs, _ in await asyncio.gather(*asked)]
    assert [labels.tolist() for labels in heard if labels is not None] == [[float(i)] for i in range(9)]
    assert runtime.most == together
    assert ("batching.concurrency does not hold" in caplog.text) is not parallel
    batcher.close()
