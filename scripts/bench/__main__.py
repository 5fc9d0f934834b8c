"""The benchmark: our server beside others, in paired rounds on pinned cores.

    python -m scripts.bench --out bench.json                    # all rows that need nothing but our own environment
    python -m scripts.bench --out bench.json --peers all        # with MLServer, BentoML, LitServe and Mosec, from PyPI
    python -m scripts.bench --out bench.json --rows kserve-v1 forest
    python -m scripts.bench --out bench.json --write docs/performance.md

Every round measures every side of a row once, in a new order, with the same load, after all of them answered the same
rows alike; ratios are taken within a round. Rows that the file holds already are not measured again, so a run that was
stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from pathlib import Path

from scripts.bench.experiments import EXPERIMENTS, Experiment, chosen, estimate
from scripts.bench.results import Results


def main() -> None:
    """Lists, measures, profiles, or writes the page."""
    args = _arguments()
    rows = chosen(args.rows, args.peers)
    if args.list:
        for row in rows:
            print(f"{row.name:18} {estimate(row, args.rounds, args.seconds) / 60:4.1f} min  {row.title}")
    elif args.write:
        from scripts.bench.page import write

        write(Results(args.out), args.write)
    elif args.profile:
        profile(args)
    else:
        measure(rows, args)


def _arguments() -> argparse.Namespace:
    summary, _, details = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m scripts.bench", description=summary, epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    known = [row.name for row in EXPERIMENTS]
    parser.add_argument("--rows", nargs="+", default=[], choices=known, metavar="NAME", help="these rows (--list)")
    parser.add_argument("--peers", default="own", choices=("kserve", "own", "all"), help="beside whom (own)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (5)")
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement (3)")
    parser.add_argument("--out", type=Path, default=Path("bench.json"), help="the file of results (bench.json)")
    parser.add_argument("--again", action="store_true", help="measure rows anew that the file holds already")
    parser.add_argument("--list", action="store_true", help="name the rows and how long they take, and do nothing")
    parser.add_argument("--profile", action="store_true", help="where our own microseconds go, stage by stage")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the page from the results; measures nothing")
    return parser.parse_args()


def measure(rows: list[Experiment], args: argparse.Namespace) -> None:
    """Measures the rows that are not there yet, and keeps each when it is done."""
    from scripts.bench.models import Models
    from scripts.bench.processes import require
    from scripts.bench.running import Bench, say

    require("wrk", "taskset")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that no server is left behind
    results = Results(args.out)
    todo = [row for row in rows if args.again or not results.has(row)]
    left = [estimate(row, args.rounds, args.seconds) / 60 for row in todo]
    with tempfile.TemporaryDirectory(prefix="headway-bench-") as home:
        bench = Bench(Path(home), Models(Path(home)), args.rounds, args.seconds)
        for i, row in enumerate(todo):
            say(f"{row.name} ({i + 1} of {len(todo)}, about {sum(left[i:]):.0f} min left): {row.title}")
            results.put(row.name, bench.run(row))
    say(f"{len(todo)} rows measured, {len(rows) - len(todo)} were there: {args.out}")


def profile(args: argparse.Namespace) -> None:
    """Prints and keeps the cost of each stage."""
    from scripts.bench.rendering import stages as table
    from scripts.bench.stages import stages

    results = Results(args.out)
    results.stages = stages(args.rounds)
    results.save()
    print(table(results.stages))


if __name__ == "__main__":
    main()
