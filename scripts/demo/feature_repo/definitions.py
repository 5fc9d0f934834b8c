"""Feast definitions: the entity `machine_id`, its readings, and the service that the model's versions name by tag."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

READINGS = (
    "temperature", "age_months", "vibration", "load", "humidity", "hours_since_maintenance",
    "type_press", "type_lathe", "type_mill", "type_pump",
)  # fmt: skip

machine = Entity(name="machine", join_keys=["machine_id"], value_type=ValueType.INT64)
readings = FeatureView(
    name="machine_readings",
    entities=[machine],
    ttl=timedelta(days=7),
    schema=[Field(name=name, dtype=Float64) for name in READINGS],
    source=FileSource(path="data/readings.parquet", timestamp_field="event_timestamp"),
)
#: Its name stands in the model versions' tag `feast.feature_service`.
machine_health = FeatureService(name="machine_health", features=[readings])
DEFINITIONS: list[Any] = [machine, readings, machine_health]
