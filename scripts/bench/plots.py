"""Plots of throughput and latency by clients, beside the page, as SVG."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.ticker import NullFormatter

from scripts.bench.experiments import PEERS
from scripts.bench.figures import median
from scripts.bench.rendering import Records, best

PANELS = {"rate": "requests per second", "p99": "p99, milliseconds"}


def lines(records: Records, what: str) -> dict[str, list[tuple[int, float]]]:
    """Points (clients, median) by server: ours and KServe's from one row, each peer at its best from its own."""
    found: dict[str, list[tuple[int, float]]] = {}
    for name in ("kserve-v1", *(f"peer-{peer}" for peer in PEERS)):
        record = records.get(name)
        for clients in (1, 16, 64, 256) if record else ():
            assert record is not None
            others = [side for side in record.figures if not side.startswith("headway") and side != "kserve-proba"]
            chosen = [best(record, others, clients), "headway" if name == "kserve-v1" else None]
            for side in chosen:
                value = median(record.figures.get(side or "", {}), clients, what)
                label = side if side in ("headway", "kserve") else name.removeprefix("peer-")
                if value:
                    found.setdefault(str(label), []).append((clients, value))
    return found


def draw(records: Records, file: Path) -> bool:
    """Writes the picture; False if there is nothing to show."""
    if not lines(records, "rate"):
        return False
    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams.update({"svg.hashsalt": "headway", "svg.fonttype": "none", "font.size": 9})
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, 4))
    for axis, (what, title) in zip(axes, PANELS.items(), strict=True):
        for label, points in lines(records, what).items():
            axis.plot(*zip(*points, strict=True), marker="o", label=label, linewidth=2.5 if label == "headway" else 1.2)
        axis.set(xscale="log", yscale="log", xlabel="clients", title=f"{title} (one row, one core)")
        axis.set_xticks([1, 16, 64, 256], ["1", "16", "64", "256"])
        axis.yaxis.set_major_formatter("{x:,g}")
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
    return True
