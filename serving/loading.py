"""From a model version to something that can answer: fetch, trust, load, warm. Runs in a thread, off the loop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from features.lookup import FeastLookup
from features.store import FeastSource
from registry.errors import InvalidModel
from registry.mlmodel import MLmodel, Signature
from registry.versions import ModelVersion
from serving.configuration import Configuration, ModelOptions, resolve
from serving.decoding import Arrays
from serving.examples import blank_rows, example_rows
from serving.runtimes.base import Engine, Outputs, Runtime, Want, datatype_of
from serving.runtimes.choose import runtime_for
from serving.runtimes.process import Processes, ProcessRuntime
from serving.schema import InputSchema, compile_schema
from serving.trust import brings_code
from serving.verdict import judge

log = logging.getLogger("headway.lifecycle")
#: What the input of one batch may take, in bytes.
LARGEST_BATCH = 256 << 20


#: The features that a version's run wrote down when it trained (`view:feature`), or None if it did not. Blocks.
Recorded = Callable[[ModelVersion], frozenset[str] | None]


class Files(Protocol):
    """A version's files, which stay where they are until they are released."""

    @property
    def path(self) -> Path:
        """Their folder."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 over the tree, in hexadecimal."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def release(self) -> None:
        """Lets the files go; twice does no harm."""
        ...


class ArtifactSource(Protocol):
    """Where a version's files come from: the artifact cache, or a fake of it."""

    def fetch(self, version: ModelVersion) -> Files:
        """The version's files. Blocks."""
        ...


@dataclass(slots=True)
class Loaded:
    """A version that has been loaded, not yet warmed."""

    runtime: Runtime
    schema: InputSchema
    signature: Signature
    configuration: Configuration
    lookup: FeastLookup | None = None
    example: Arrays | None = None
    files: Files | None = None
    outputs: list[dict[str, Any]] = field(default_factory=list)
    #: the names of the outputs, if there are several
    names: tuple[str, ...] = ()

    @property
    def keys(self) -> frozenset[str]:
        """The entity keys that a request may bring instead of columns."""
        return self.lookup.keys if self.lookup is not None else frozenset()

    @property
    def process(self) -> ProcessRuntime | None:
        """The runtime, if it is a process: it must not be called on the event loop, and may be gone for a while."""
        return self.runtime if isinstance(self.runtime, ProcessRuntime) else None

    def dispose(self) -> None:
        """Releases the runtime, then the files. Blocks."""
        self.runtime.close()
        if self.files is not None:
            self.files.release()

    @property
    def digest(self) -> str | None:
        """What the files are: `sha256:…` over the tree."""
        return f"sha256:{self.files.digest}" if self.files else None

    @property
    def size(self) -> int | None:
        """Bytes of the files."""
        return self.files.size if self.files else None


class Loader:
    """Loads versions of one served model."""

    def __init__(
        self,
        source: ArtifactSource,
        options: ModelOptions,
        features: FeastSource | None,
        processes: Processes = Processes(),  # noqa: B008  frozen
        recorded: Recorded = lambda version: None,
        name: str | None = None,
    ) -> None:
        """`name` is the served name, for the log; a version without a registered name has none of its own."""
        self._source, self._options, self._features, self._processes = source, options, features, processes
        self._recorded, self._name = recorded, name

    def load(self, version: ModelVersion) -> Loaded:
        """Fetches, checks and loads. Raises InvalidModel or whatever the flavour's library raises."""
        files = self._source.fetch(version)
        try:
            return self._load(version, files)
        except BaseException:
            files.release()
            raise

    def _load(self, version: ModelVersion, files: Files) -> Loaded:
        options = self._options
        model = judge(version, files, options).accepted
        configuration = resolve(options, version.tags, model.metadata)
        schema = compile_schema(model.signature, ignore_extra=options.ignore_extra_columns)
        lookup = self._lookup(version, configuration, schema)
        assert model.signature is not None
        example = example_rows(model, schema)
        configuration = _affordable(configuration, example or blank_rows(schema))
        runtime = self._runtime(version, model, schema, configuration)
        _say(self._name or version.name, version.version, runtime.engine)
        return Loaded(runtime, schema, model.signature, configuration, lookup, example, files)

    def _runtime(
        self, version: ModelVersion, model: MLmodel, schema: InputSchema, configuration: Configuration
    ) -> Runtime:
        options = self._options
        if options.isolation == "process" or (options.isolation == "auto" and brings_code(model)):
            return self._processes.start(
                model, version.name, version.version, configuration, options.memory_mb, options.ignore_extra_columns
            )
        return runtime_for(model)(model, schema, configuration)

    def _lookup(self, version: ModelVersion, configuration: Configuration, schema: InputSchema) -> FeastLookup | None:
        service = configuration.feature_service
        if service is None or not schema.columns:
            return None
        if self._features is None:
            log.warning(
                "features.repo_path is not set: rows must bring every column", extra={"feature_service": service}
            )
            return None
        columns = {column.name: (column.type, column.required) for column in schema.columns}
        return self._features.lookup(service, columns, configuration.feature_layers, self._recorded(version))


def _say(model: str, version: str, engine: Engine) -> None:
    facts = {"model": model, "version": version, "engine": engine.name}
    if engine.why is not None:
        facts["not_accelerated"] = engine.why
    log.info("runtime loaded", extra=facts)


def _affordable(configuration: Configuration, example: Arrays) -> Configuration:
    """The configuration with as many rows in a batch as its memory allows: a version says how wide its rows are."""
    limits = configuration.limits
    width = sum(array.nbytes // max(1, len(array)) for array in example)
    most = max(1, min(limits.max_rows, LARGEST_BATCH // max(1, width)))
    if most < limits.max_rows:
        log.warning(
            "batches have fewer rows than asked for, because rows are wide", extra={"rows": most, "bytes": width}
        )
    return replace(configuration, limits=replace(limits, max_rows=most))


def warm(loaded: Loaded) -> float:
    """Runs the model at 1, 2 and `max_rows` rows, with and without probabilities, and returns the milliseconds that a
    full batch takes. Raises whatever the model raises, or InvalidModel if it answers another number of rows."""
    most = loaded.configuration.limits.max_rows
    example = loaded.example or blank_rows(loaded.schema)
    want = Want.LABELS | (Want.PROBABILITIES if loaded.runtime.classes is not None else Want.NONE)
    for rows in sorted({1, min(2, most), most}):
        outputs, _ = _run(loaded, example, rows, want | Want.RAW)
    loaded.outputs, loaded.names = describe(outputs), tuple(outputs.named or ())
    return min(_run(loaded, example, most, want)[1] for _ in range(5))  # what else the machine does only adds


def _run(loaded: Loaded, example: Arrays, rows: int, want: Want) -> tuple[Outputs, float]:
    arrays = tuple(np.resize(a, (rows, *a.shape[1:])) for a in example)
    began = time.perf_counter()
    outputs = loaded.runtime.predict(arrays, rows, want)
    if not outputs.consistent():
        raise InvalidModel(f"the model does not answer {rows} rows for {rows}; is its batch dimension fixed?")
    return outputs, (time.perf_counter() - began) * 1000


def describe(outputs: Outputs) -> list[dict[str, Any]]:
    """The V2 metadata of what a model really answered at warm-up; -1 is the number of rows."""
    one = {"predictions": outputs.labels, "probabilities": outputs.probabilities}
    named = outputs.named or {name: array for name, array in one.items() if array is not None}
    return [
        {"name": name, "datatype": datatype_of(array), "shape": [-1, *array.shape[1:]]} for name, array in named.items()
    ]
