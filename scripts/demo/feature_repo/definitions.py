"""Feast definitions: the entity `machine_id`, its readings, and the services that the model's versions name by tag."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, PushSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

READINGS = (
    "temperature", "age_months", "vibration", "load", "humidity", "hours_since_maintenance",
    "type_press", "type_lathe", "type_mill", "type_pump",
)  # fmt: skip

machine = Entity(name="machine", join_keys=["machine_id"], value_type=ValueType.INT64)
#: Readings come from the history, and as a stream would bring them: `store.push("readings", frame)`.
stream = PushSource(
    name="readings", batch_source=FileSource(path="data/readings.parquet", timestamp_field="event_timestamp")
)
readings = FeatureView(
    name="machine_readings",
    entities=[machine],
    ttl=timedelta(days=7),
    schema=[Field(name=name, dtype=Float64) for name in (*READINGS, "rated_kw")],
    source=stream,
)
meter = RequestSource(name="meter", schema=[Field(name="power_kw", dtype=Float64)])


@on_demand_feature_view(  # type: ignore[untyped-decorator]
    sources=[readings[["rated_kw"]], meter], schema=[Field(name="load", dtype=Float64)], mode="python"
)
def live_load(inputs: dict[str, Any]) -> dict[str, Any]:
    """The load of this moment: the power that the caller has just measured, as a share of the rated power on file."""
    pairs = zip(inputs["power_kw"], inputs["rated_kw"], strict=True)
    return {"load": [None if rated is None else power / rated for power, rated in pairs]}


#: Its name stands in the model versions' tag `feast.feature_service`.
machine_health = FeatureService(name="machine_health", features=[readings[list(READINGS)]])
#: The same columns, but the load is computed from a request's own `power_kw`.
machine_live = FeatureService(
    name="machine_live", features=[readings[[name for name in READINGS if name != "load"]], live_load]
)
DEFINITIONS: list[Any] = [machine, readings, live_load, machine_health, machine_live]
