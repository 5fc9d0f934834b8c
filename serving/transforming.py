"""Completing entity rows in front of a predictor that is somewhere else: what `headway transform` runs.

Only what the feature service offers is looked at; everything else of a request is the predictor's to judge.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np

from features.lookup import FeastLookup
from monitoring.metrics import Metrics
from registry.mlmodel import Column
from serving.completing import fill_gaps, find_gaps, look_up, share, tell
from serving.decoding import Partial, decode_instances
from serving.errors import NotReady
from serving.predictor import Predictor
from serving.schema import InputSchema
from serving.status import DATATYPES
from serving.tensors import decode_columns
from serving.threads import in_thread
from serving.transport.document import parse_object
from serving.transport.v1 import dumps
from serving.transport.v2 import Tail, given_of

log = logging.getLogger("headway.transformer")
TYPES = {datatype: type for type, datatype in reversed(DATATYPES.items())}
#: The predictor's metadata are read this often, and have this long to come.
PERIOD_SECONDS, METADATA_SECONDS = 5.0, 5.0
FIRST_WAIT_SECONDS = 0.2

#: Prepares the lookup of columns (name → MLflow type, required). Blocks.
Prepare = Callable[[Mapping[str, tuple[str, bool]]], FeastLookup]


class Columns:
    """The predictor's columns by name and type, and the lookup that was prepared for them."""

    def __init__(self, types: Mapping[str, str], lookup: FeastLookup) -> None:
        self.types, self.lookup = types, lookup
        # The metadata do not say what is required: what is missing is the predictor's to refuse.
        mine = [name for name in types if name in lookup.columns | lookup.sources]
        self.schema = InputSchema(tuple(Column(n, types[n], required=False) for n in mine), ignore_extra=True)
        self.dropped = lookup.keys - types.keys()

    def asked_by(self, row: Any) -> bool:
        """Whether a V1 row brings a key."""
        return isinstance(row, dict) and not self.lookup.keys.isdisjoint(row)


class Transformer:
    """Completes the requests for one model. `metrics` count without a version: which one answers is the predictor's."""

    def __init__(self, name: str, predictor: Predictor, prepare: Prepare, metrics: Metrics) -> None:
        self.name, self._predictor, self._prepare, self._metrics = name, predictor, prepare, metrics
        self._columns: Columns | None = None

    @property
    def ready(self) -> bool:
        """Whether the predictor has said its columns, and a lookup is prepared for them."""
        return self._columns is not None

    async def follow(self) -> None:
        """Reads the predictor's metadata again and again, until cancelled. What was prepared last stays on an error."""
        wait = FIRST_WAIT_SECONDS
        while True:
            try:
                await self.look()
                wait = PERIOD_SECONDS
            except Exception as error:  # noqa: BLE001  the reconcile loop: the next turn may do better
                log.warning(
                    "the predictor's columns are not known anew", extra={"model": self.name, "reason": str(error)}
                )
                wait = min(2 * wait, PERIOD_SECONDS)
            await asyncio.sleep(wait)

    async def look(self) -> None:
        """Reads the metadata, and prepares a lookup if the columns are other ones."""
        due = time.monotonic() + METADATA_SECONDS
        answer = await self._predictor.ask("GET", f"/v2/models/{quote(self.name)}", [], b"", due)
        if answer.status != 200:
            raise NotReady(f"the predictor answers {answer.status} when it is asked for the model's metadata")
        types = types_of(parse_object(answer.body))
        if self._columns is None or types != self._columns.types:
            asked = {name: (type, False) for name, type in types.items()}
            self._columns = Columns(types, await in_thread(lambda: self._prepare(asked)))
            log.info("ready", extra={"model": self.name, "columns": sorted(self._columns.lookup.columns)})

    async def complete(self, body: bytes, *, v1: bool, deadline: float | None) -> tuple[bytes, str]:
        """The body as a predictor without features takes it, and a note on what was looked up.

        A body without a key is returned as it is. Raises NotReady, BadRequest, or what the lookup raises.
        """
        if self._columns is None:
            raise NotReady("The predictor has not said yet which columns it takes.")
        return await (self._instances if v1 else self._tensors)(self._columns, body, deadline)

    async def _instances(self, columns: Columns, body: bytes, deadline: float | None) -> tuple[bytes, str]:
        document = parse_object(body)
        rows = document.get("instances")
        if not isinstance(rows, list) or not any(map(columns.asked_by, rows)):
            return body, ""
        partial = decode_instances(columns.schema, rows, columns.lookup.keys)
        found, note = await self._found(columns, partial, deadline)
        kept = [{name: value for name, value in row.items() if name not in columns.dropped} for row in rows]
        by_row = zip(*[values.tolist() for values in found.values()], strict=True) if found else [()] * len(rows)
        document["instances"] = [
            dict(zip(found, values, strict=True)) | own for values, own in zip(by_row, kept, strict=True)
        ]
        return dumps(document), note

    async def _tensors(self, columns: Columns, body: bytes, deadline: float | None) -> tuple[bytes, str]:
        document = parse_object(body)
        inputs = document.get("inputs")
        names = [t.get("name") for t in inputs if isinstance(t, dict)] if isinstance(inputs, list) else []
        if not inputs or not any(isinstance(name, str) and name in columns.lookup.keys for name in names):
            return body, ""
        mine = columns.lookup.keys.union(columns.schema.names)
        given = [given_of(t, Tail(memoryview(b""))) for t, name in zip(inputs, names, strict=True) if name in mine]
        partial = decode_columns(columns.schema, given, columns.lookup.keys)
        found, note = await self._found(columns, partial, deadline)
        document["inputs"] = [t for t, name in zip(inputs, names, strict=True) if name not in columns.dropped]
        document["inputs"] += [
            {"name": n, "datatype": DATATYPES[columns.types[n]], "shape": [partial.rows, 1], "data": values}
            for n, values in found.items()
        ]
        return dumps(document), note

    async def _found(
        self, columns: Columns, partial: Partial, deadline: float | None
    ) -> tuple[dict[str, np.ndarray], str]:
        """The columns `[n]` that were not brought, or not by every row, and a note."""
        gaps = find_gaps(columns.schema, columns.lookup, partial, share(deadline))
        if gaps is None:
            return {}, ""
        completed = await look_up(columns.lookup, gaps.need, self._metrics, (self.name, ""))
        fill_gaps(columns.schema, partial, gaps, completed.columns)
        return {name: partial.given[name] for name in gaps.need.names}, tell(gaps, completed)


def types_of(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The MLflow types of the columns in a model's V2 metadata; tensors of other shapes have none. Raises NotReady."""
    try:
        columns = [t for t in metadata["inputs"] if t["shape"] in ([-1, 1], [-1])]
        return {t["name"]: TYPES[t["datatype"]] for t in columns if t["datatype"] in TYPES}
    except (KeyError, TypeError) as error:
        raise NotReady("the predictor's metadata are not those of the Open Inference Protocol") from error
