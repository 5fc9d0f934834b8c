"""A seeded simulation of machines that wear, overheat and fail.

Each machine has a type, an age and a hidden wear that grows with load and vibration and is reset by maintenance. Every
reading is noisy; a failure within the next seven days is drawn from a hazard that depends on wear, on heat *while*
under load, on resonance (a ridge where vibration meets load, elsewhere for each type) and on neglected maintenance. The
linear part of that is easy; thresholds suit a tree ensemble; the slanted ridge suits a network. So each later version
is better than the one before for reasons that lie in the data.

| column                   | unit                       |
|--------------------------|----------------------------|
| temperature              | °C                         |
| age_months               | months                     |
| vibration                | mm/s, RMS                  |
| load                     | share of nominal, 0–1      |
| humidity                 | share, 0–1                 |
| hours_since_maintenance  | hundreds of hours          |
| type_press … type_pump   | one-hot machine type       |
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd

TYPES = ("press", "lathe", "mill", "pump")
COLUMNS = (
    "temperature",
    "age_months",
    "vibration",
    "load",
    "humidity",
    "hours_since_maintenance",
    *(f"type_{name}" for name in TYPES),
)
#: One machine of the type `press`, as the documentation shows it.
EXAMPLE = (75.3, 24.0, 0.15, 0.65, 0.8, 2.5, 1.0, 0.0, 0.0, 0.0)
RESONANCE = np.array([0.9, 0.5, 0.7, 1.1])


@dataclass(frozen=True, slots=True)
class Histories:
    """Readings `[machines × days]` in long form: `machine_id`, `event_timestamp`, the ten columns, `failed_within_7d`."""

    frame: pd.DataFrame

    @property
    def x(self) -> pd.DataFrame:
        """The ten columns, float64, in order."""
        return self.frame[list(COLUMNS)]

    @property
    def y(self) -> np.ndarray:
        """0 or 1: did the machine fail within seven days of the reading?"""
        return np.asarray(self.frame["failed_within_7d"])


def simulate(machines: int = 400, days: int = 60, seed: int = 7, until: datetime | None = None) -> Histories:
    """Simulates daily readings up to `until` (now, if not given). The same seed gives the same values."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, len(TYPES), machines)
    age = rng.uniform(1, 120, machines)
    wear = rng.uniform(0, 0.5, machines)
    hours = rng.uniform(0, 8, machines)
    end = (until or datetime.now(UTC)).replace(microsecond=0)
    frames = []
    for day in range(days):
        readings, probability = _day(rng, kind, age, wear, hours)
        failed = rng.random(machines) < probability
        frames.append(_frame(readings, kind, failed, end - timedelta(days=days - 1 - day)))
        wear = np.clip(wear + 0.02 * readings["load"] * (1 + readings["vibration"]), 0, 2)
        hours = hours + 0.24 * readings["load"]
        serviced = failed | (rng.random(machines) < 0.03)
        wear, hours = np.where(serviced, 0.05, wear), np.where(serviced, 0.0, hours)
        age = age + 1 / 30
    return Histories(pd.concat(frames, ignore_index=True))


def _day(
    rng: np.random.Generator, kind: np.ndarray, age: np.ndarray, wear: np.ndarray, hours: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    n = len(kind)
    load = np.clip(rng.beta(4, 2.5, n), 0, 1)
    humidity = rng.beta(3, 3, n)
    vibration = np.abs(0.15 + 0.55 * wear + 0.1 * rng.standard_normal(n)) + 0.15 * (kind == 3)
    temperature = 45 + 30 * load + 14 * wear + 6 * humidity + 4 * rng.standard_normal(n)
    resonance = np.exp(-(((vibration - RESONANCE[kind] * (0.4 + load)) / 0.12) ** 2))
    overheated = np.clip((temperature - 78) / 10, 0, 2) * (load > 0.6)
    neglected = np.clip(hours - 6, 0, 6)
    logit = -6.2 + 1.2 * wear + 0.012 * age + 5.0 * resonance + 3.0 * overheated + 0.9 * neglected
    readings = {
        "temperature": temperature,
        "age_months": age,
        "vibration": vibration,
        "load": load,
        "humidity": humidity,
        "hours_since_maintenance": hours,
    }
    return readings, 1 / (1 + np.exp(-logit))


def _frame(readings: dict[str, np.ndarray], kind: np.ndarray, failed: np.ndarray, when: datetime) -> pd.DataFrame:
    one_hot = {f"type_{name}": (kind == i).astype(float) for i, name in enumerate(TYPES)}
    return pd.DataFrame(
        {
            "machine_id": np.arange(1, len(kind) + 1),
            "event_timestamp": when,
            "created": when,
            **readings,
            **one_hot,
            "failed_within_7d": failed.astype(int),
        }
    )
