"""On-demand views: Feast's functions over stored features and the request's own fields, called for one request's rows.

The functions come from Feast's registry, which is the operator's own; they run in a thread, and Feast's views call them.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from features.errors import FeatureFailed
from features.service import OnDemand

log = logging.getLogger("headway.features")
Columns = dict[str, list[Any]]


def compute(on_demand: OnDemand, columns: Columns, types: Mapping[str, str], rows: int) -> Columns:
    """The outputs of a view for `rows` rows, None for null. Blocks. Raises FeatureFailed if its function does."""
    view = on_demand.view
    try:
        if view.mode != "python":
            found = _over_arrow(view, columns, types)
        elif view.singleton:
            found = _row_by_row(view, _timed(columns, types), rows)
        else:
            found = view.transform_dict(_timed(columns, types))
        outputs = {name: [_plain(value) for value in found[name]] for name in on_demand.outputs}
        if any(len(values) != rows for values in outputs.values()):
            raise ValueError(f"it does not answer {rows} rows for {rows}")
    except Exception as error:
        log.warning("on-demand view failed", extra={"view": on_demand.name}, exc_info=error)
        raise FeatureFailed(f"the on-demand view {on_demand.name[:64]!r} raised {type(error).__name__}") from error
    return outputs


def _row_by_row(view: Any, columns: Columns, rows: int) -> Columns:
    """Feast itself hands a singleton view the first row only; here every row is computed."""
    answers = [view.transform_dict({name: [values[i]] for name, values in columns.items()}) for i in range(rows)]
    return {name: [answer[name] for answer in answers] for name in (answers[0] if answers else ())}


def _over_arrow(view: Any, columns: Columns, types: Mapping[str, str]) -> Columns:
    import pyarrow as pa

    kinds = {
        "DOUBLE": pa.float64(), "FLOAT": pa.float32(), "INT64": pa.int64(), "INT32": pa.int32(), "BOOL": pa.bool_(),
        "STRING": pa.string(), "BYTES": pa.binary(), "UNIX_TIMESTAMP": pa.timestamp("s", tz="UTC"),
    }  # fmt: skip
    table = pa.table({name: pa.array(values, kinds[types[name]]) for name, values in columns.items()})
    found: Columns = view.transform_arrow(table).to_pydict()
    return found


def _timed(columns: Columns, types: Mapping[str, str]) -> Columns:
    """Times as Feast hands them to Python functions: datetimes."""
    timed = {
        name: [None if v is None else datetime.fromtimestamp(v, UTC) for v in values]
        for name, values in columns.items()
        if types[name] == "UNIX_TIMESTAMP"
    }
    return {**columns, **timed}


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, datetime):
        return int((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp())
    return None if isinstance(value, float) and math.isnan(value) else value
