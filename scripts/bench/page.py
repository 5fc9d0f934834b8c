"""The page: a template with prose, filled with tables and plots of the results."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.bench.plots import draw
from scripts.bench.rendering import BY_NAME, MISSING, Records, fastest, headlines, row, stages
from scripts.bench.results import Results

TEMPLATE = Path(__file__).with_name("page.template")
_HOLE = re.compile(r"^\{\{(\w+)(?: ([\w-]+))?\}\}$", re.M)


def write(results: Results, page: Path) -> None:
    """Writes the page, and its plot beside it."""
    picture = page.with_suffix(".svg")
    drawn = draw(results.records, picture)
    page.write_text(render(TEMPLATE.read_text("utf-8"), results, picture.name if drawn else ""), "utf-8")
    print(f"{page} is written; {len(results.records)} of {len(BY_NAME)} rows were measured")


def render(template: str, results: Results, picture: str = "") -> str:
    """The template with every hole filled."""
    records = results.records

    def fill(match: re.Match[str]) -> str:
        what, name = match.groups()
        if what == "row":
            return row(BY_NAME[name], records.get(name)).rstrip()
        holes = {
            "headlines": lambda: headlines(records),
            "fastest": lambda: fastest(records),
            "stages": lambda: stages(results.stages),
            "machine": lambda: where(records),
            "plot": lambda: f"![throughput and p99 by clients]({picture})" if picture else "",
        }
        return holes[what]()

    return _HOLE.sub(fill, template)


def where(records: Records) -> str:
    """On what machines and when the rows were measured."""
    if not records:
        return MISSING
    lines = []
    for text in sorted({_machine(record.machine) for record in records.values()}):
        times = sorted(record.at for record in records.values() if _machine(record.machine) == text)
        lines.append(f"- {text}. From {times[0]} to {times[-1]}.")
    return "\n".join(lines)


def _machine(said: Mapping[str, Any]) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in said["packages"].items())
    hardware = f"{said['processor']}, {said['cores']} cores, {said['memory_gb']} GB, {said['system']}"
    return f"{hardware}; Python {said['python']}, {packages}"
