"""The file of results: one record per row, written after each, so that a run can be stopped and continued."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from scripts.bench.experiments import Experiment
from scripts.bench.figures import Figure


@dataclass
class Record:
    """What was measured of one experiment: figures by side and clients, one per round; and why a side was skipped."""

    rounds: int
    seconds: float
    at: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    figures: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def add(self, side: str, clients: int, figure: Figure) -> None:
        """One more figure."""
        self.figures.setdefault(side, {}).setdefault(str(clients), []).append(figure.plain())

    def complete(self, experiment: Experiment) -> bool:
        """Whether our side was measured; if it could not be, another run tries again."""
        return experiment.sides[0].name in self.figures


class Results:
    """Records by name of the experiment, in a JSON file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        tree = json.loads(file.read_text()) if file.exists() else {}
        self.records = {name: Record(**record) for name, record in tree.get("rows", {}).items()}
        self.stages: dict[str, float] = tree.get("stages", {})

    def has(self, experiment: Experiment) -> bool:
        """Whether it need not be measured again."""
        record = self.records.get(experiment.name)
        return record is not None and record.complete(experiment)

    def put(self, name: str, record: Record) -> None:
        """Keeps a record, stamped, in the file."""
        record.at, record.machine = datetime.now(UTC).isoformat(timespec="minutes"), machine()
        self.records[name] = record
        self.save()

    def save(self) -> None:
        """Writes the file whole, or not at all."""
        tree = {"rows": {name: vars(record) for name, record in self.records.items()}, "stages": self.stages}
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(tree, indent=1))
        partial.replace(self._file)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    names = ("kserve", "mlflow", "ray", "scikit-learn", "numpy", "uvloop", "torch", "feast", "onnxruntime")
    return {
        "processor": _processor(),
        "cores": psutil.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in names},
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
