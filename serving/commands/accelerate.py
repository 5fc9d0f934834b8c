"""`headway accelerate --check`: would this version be computed without its library, does it answer the same, how fast?"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.commands.base import CommandFailed, Verb, say
from serving.commands.fetching import Fetched, entry_flags, fetched
from serving.commands.table import table

if TYPE_CHECKING:
    from serving.runtimes.base import Runtime

_ROWS, _ROUNDS = (1, 32), 30


def run(args: argparse.Namespace) -> int:
    """Prints what was found; 0 only if the faster engine answers as the library does. Raises CommandFailed for a version
    that the server would not load, and what fetching raises."""
    with fetched(args.check, args) as one:
        found = _check(one)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else _text(found))
    return 0 if found["parity"] else 1


def _check(one: Fetched) -> dict[str, Any]:
    from serving.runtimes.accelerated.accelerate import CHECK_SECONDS, proved
    from serving.runtimes.accelerated.program import NotAccelerated

    native, schema, example = _load(one)
    say(f"comparing, at most {CHECK_SECONDS:g} seconds …")
    found: dict[str, Any] = {"reference": one.reference, "version": one.version.uri, "parity": False}
    try:
        fast, proof = proved(native, schema, example)
    except NotAccelerated as why:
        return found | {"engine": native.engine.name, "reason": str(why)}
    return found | {
        "parity": True, "engine": fast.engine.name, "rows": proof.rows, "at_thresholds": proof.at_thresholds,
        "largest_difference": proof.difference, "check_seconds": round(proof.seconds, 3),
        "microseconds": [_times(native, fast, example, rows) for rows in _ROWS],
    }  # fmt: skip


def _load(one: Fetched) -> Any:
    """The version in its own library, its schema and rows to begin with. It must pass the trust gate as in the server."""
    from serving.examples import blank_rows, example_rows
    from serving.runtimes.choose import accelerates
    from serving.runtimes.sklearn import load_sklearn
    from serving.schema import compile_schema
    from serving.verdict import judge

    model = judge(one.version, one.files, one.options).accepted
    if not accelerates(model):
        raise CommandFailed("only versions of the sklearn flavour that bring no code are accelerated")
    schema = compile_schema(model.signature, ignore_extra=one.options.ignore_extra_columns)
    return load_sklearn(model, schema), schema, example_rows(model, schema) or blank_rows(schema)


def _times(native: Runtime, fast: Runtime, example: Any, rows: int) -> dict[str, Any]:
    """Medians of calls in turn, labels and probabilities wanted, in microseconds."""
    import numpy as np

    from serving.runtimes.base import Want

    arrays = tuple(np.resize(array, (rows, *array.shape[1:])) for array in example)
    want = Want.LABELS | (Want.PROBABILITIES if native.classes is not None else Want.NONE)

    def once(runtime: Runtime) -> float:
        return _microseconds(lambda: runtime.predict(arrays, rows, want))

    pairs = [(once(native), once(fast)) for _ in range(_ROUNDS)]
    slow, quick = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"rows": rows, "library": round(slow, 1), "accelerated": round(quick, 1), "ratio": round(slow / quick, 1)}


def _microseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e6


def _text(found: dict[str, Any]) -> str:
    facts = [f"version    {found['version']}", f"engine     {found['engine']}"]
    if not found["parity"]:
        return "\n".join([*facts, "parity     no", f"- {found['reason']}"])
    compared = f"{found['rows']} rows compared, {found['at_thresholds']} of them next to a threshold"
    facts.append(f"parity     yes: {compared}; largest difference {found['largest_difference']:.1e}")
    cells = [[str(times[key]) for key in times] for times in found["microseconds"]]
    return "\n".join([*facts, "", table(["ROWS", "LIBRARY µs", "ACCELERATED µs", "RATIO"], cells)])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What to check, and with whose settings."""
    parser.add_argument("--check", metavar="REFERENCE", required=True, help="models:/NAME/3, models:/NAME@alias, …")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    entry_flags(parser)


VERB = Verb("accelerate", "check that a version is computed faster, and answers the same", add_flags, run)
