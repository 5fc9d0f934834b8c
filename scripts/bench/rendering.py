"""Tables in Markdown, from records. Pure: no clock, no file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from scripts.bench.experiments import EXPERIMENTS, PEER_SIDES, Experiment
from scripts.bench.figures import Figures, errors, median, ratio, ratios
from scripts.bench.results import Record

Records = Mapping[str, Record]
MISSING = "not measured yet"
BUSY = 0.9
BY_NAME = {experiment.name: experiment for experiment in EXPERIMENTS}


@dataclass(frozen=True)
class Headline:
    """One line of the summary: a ratio of one quantity of ours to that of the best of some other sides."""

    says: str
    row: str
    others: tuple[str, ...]
    clients: int
    what: str = "rate"
    first: str = "headway"


_MOSEC = tuple(side.name for side in PEER_SIDES["mosec"])
HEADLINES: tuple[Headline, ...] = (
    *[Headline(f"throughput, KServe's SDK V1, 1 row, clients: {n}", "kserve-v1", ("kserve",), n) for n in (1, 16, 64, 256)],
    Headline("p50, the same, 1 client", "kserve-v1", ("kserve",), 1, "p50"),
    Headline("p99, the same, 64 clients", "kserve-v1", ("kserve",), 64, "p99"),
    Headline("throughput, Mosec at its best, 32 rows, 16 clients", "peer-mosec-32", _MOSEC, 16),
    Headline("throughput, KServe's SDK V2 JSON, 1 row, 16 clients", "kserve-v2", ("kserve",), 16),
    Headline("throughput, KServe's SDK V2 JSON, 1000 × 20 values, 1 client", "kserve-v2-1000", ("kserve",), 1),
    Headline("throughput, KServe's SDK gRPC, 1 row, 16 clients", "kserve-grpc", ("kserve",), 16),
    *[Headline(f"throughput, bare protocol around the same library calls, {n} clients", "ceiling", ("bare-library",), n,
               first="headway-native") for n in (16, 64)],
    *[Headline(f"throughput, bare protocol around the same compiled calls, {n} clients", "ceiling", ("bare-compiled",), n)
      for n in (16, 64)],
    Headline("throughput, Mosec at its best, forest of 100 trees, 64 clients", "forest-mosec", _MOSEC, 64),
    Headline("p50, acceleration off, forest of 100 trees, 1 client", "forest", ("headway-native",), 1, "p50"),
    Headline("throughput, 1 worker beside 2 on two cores, forest by the library, 64 clients", "workers", ("1-worker",), 64,
             first="2-workers"),
    Headline("memory, KServe's SDK", "start", ("kserve",), 1, "memory"),
    Headline("start to first right answer, KServe's SDK", "start", ("kserve",), 1, "seconds"),
)  # fmt: skip


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, without an exponent."""
    if value is None:
        return "—"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 10 ** (digits - 1) else f"{rounded:g}"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def headlines(records: Records) -> str:
    """The summary: each ratio with its range over the rounds."""
    head = ("what, and beside what", "row", "ratio", "lowest to highest of the rounds", "our bounds")
    return markdown(head, (_headline(line, records) for line in HEADLINES))


def _headline(line: Headline, records: Records) -> Sequence[str]:
    experiment, record = BY_NAME[line.row], records.get(line.row)
    first = record.figures.get(line.first, {}) if record else {}
    other = best(record, line.others, line.clients) if record else None
    found = ratios(first, record.figures[other], line.clients, line.what) if record and other else []
    if not found or record is None or other is None:
        why = (record.skipped.get(line.first) or "the other was skipped") if record else MISSING
        return line.says, f"`{line.row}`", "—", why, experiment.bounds
    middle = ratio(first, record.figures[other], line.clients, line.what)
    spread = f"{number(min(found))} to {number(max(found))}"
    return line.says, f"`{line.row}`", f"**{number(middle)}**", spread, experiment.bounds


def best(record: Record, sides: Iterable[str], clients: int) -> str | None:
    """The side with the highest median rate; None where none was measured."""
    rates = {side: median(record.figures.get(side, {}), clients, "rate") for side in sides}
    measured = {side: rate for side, rate in rates.items() if rate is not None}
    return max(measured, key=lambda side: measured[side]) if measured else None


def fastest(records: Records) -> str:
    """For each number of clients, the peer that comes nearest to us: the smallest ratio among all pairs."""
    rows = []
    for clients in BY_NAME["kserve-v1"].clients:
        near = sorted(_beside(records, clients))
        cells = [f"{side}: {number(value)}" for value, side in near[:3]] or [MISSING]
        rows.append([str(clients), *cells, *[""] * (3 - len(cells))])
    return markdown(("clients", "nearest", "second", "third"), rows)


def _beside(records: Records, clients: int) -> Iterable[tuple[float, str]]:
    for name in ("kserve-v1", *(f"peer-{peer}" for peer in PEER_SIDES)):
        figures = records[name].figures if name in records else {}
        for side, found in figures.items():
            value = ratio(figures.get("headway", {}), found, clients)
            if value is not None and not side.startswith("headway"):
                yield value, side


def row(experiment: Experiment, record: Record | None) -> str:
    """The section of one experiment: its bounds, its table, and what was skipped."""
    if record is None:
        return f"`{experiment.name}`, {experiment.title}: {MISSING}.\n"
    said = f"`{experiment.name}`, {experiment.title} ({experiment.bounds}; rounds: {record.rounds} × {record.seconds:g} s):"
    notes = [f"- `{side}` was skipped: {reason}" for side, reason in record.skipped.items()]
    if record.figures:
        notes = [_TABLES.get(experiment.kind, _closed)(experiment, record), *([""] if notes else []), *notes]
    return "\n".join([said, "", *notes, ""])


def _closed(experiment: Experiment, record: Record) -> str:
    first = experiment.sides[0].name
    head = ("clients", "server", "requests/s", "CPU µs each", "p50 ms", "p99 ms",
            f"{first}: times the rate", "of the CPU", "of p50", "of p99")  # fmt: skip
    rows = [
        _line(record.figures[first], record.figures[side.name], side.name, clients)
        for clients in experiment.clients
        for side in experiment.sides
        if side.name in record.figures
    ]
    return markdown(head, rows)


def _line(first: Figures, figures: Figures, name: str, clients: int) -> list[str]:
    values = [number(median(figures, clients, what)) for what in ("rate", "cpu", "p50", "p99")]
    compared = [number(ratio(first, figures, clients, what)) for what in ("rate", "cpu", "p50", "p99")]
    lost, load = errors(figures, clients), median(figures, clients, "load") or 0.0
    marks = f" ({lost} errors)" * bool(lost) + " †" * (load > BUSY)
    return [str(clients), name + marks, *values, *(["1"] * 4 if figures is first else compared)]


def _start(experiment: Experiment, record: Record) -> str:
    first = record.figures[experiment.sides[0].name]
    rows = []
    for name, figures in record.figures.items():
        values = [number(median(figures, 1, what)) for what in ("seconds", "memory")]
        rows.append([name, *values, *[number(ratio(first, figures, 1, what)) for what in ("seconds", "memory")]])
    return markdown(("server", "seconds", "MB (PSS)", "ours: of its seconds", "of its MB"), rows)


def _open(experiment: Experiment, record: Record) -> str:
    figures = record.figures[experiment.sides[0].name]
    values = [number(median(figures, 1, what)) for what in ("rate", "cpu", "p50", "p95", "p99", "load")]
    head = ("requests/s", "CPU µs each", "P50 ms", "P95 ms", "P99 ms", "cores of the load", "errors")
    return markdown(head, [[*values, str(errors(figures, 1))]])


_TABLES = {"start": _start, "open": _open, "capacity": _open}

#: The stages inside the data plane, and those of the connection around it, each measured alone.
PLANE: Mapping[str, str] = {
    "decode": "JSON to a checked array",
    "batch": "queue, batch and delivery, an empty model",
    "predict": "the compiled model, labels and probabilities",
    "metrics": "four metrics",
    "encode": "the answer as JSON",
}
CONNECTION: Mapping[str, str] = {
    "parse": "HTTP parser, headers kept",
    "head": "route, content type, length, request id",
    "write": "status line and headers",
}


def stages(found: Mapping[str, float]) -> str:
    """The costs of the stages, and what is left of the data plane and of the whole."""
    if not found:
        return MISSING
    counts = sorted({int(key.split()[1]) for key in found})

    def cells(of: Callable[[int], float]) -> list[str]:
        return [number(of(n)) for n in counts]

    def alone(names: Iterable[str], n: int) -> float:
        return sum(found[f"{name} {n}"] for name in names)

    def each(texts: Mapping[str, str]) -> list[list[str]]:
        return [[text, *cells(lambda n, name=name: found[f"{name} {n}"])] for name, text in texts.items()]  # type: ignore[misc]

    rows = [
        *each(CONNECTION),
        ["the connection's rest: callbacks, order, timers", *cells(
            lambda n: found[f"whole {n}"] - found[f"plane {n}"] - alone(CONNECTION, n))],
        *each(PLANE),
        ["the data plane's rest: lease, deadline, timings", *cells(lambda n: found[f"plane {n}"] - alone(PLANE, n))],
        ["**the whole, without sockets**", *cells(lambda n: found[f"whole {n}"])],
    ]  # fmt: skip
    return markdown(("µs of CPU per request", *[f"{n} per turn of the loop" for n in counts]), rows)
