"""`headway features check`: is the online store fresh, and does it hold what the offline store holds?"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from serving.commands.base import CommandFailed, Verb, check_repository, say
from serving.commands.table import table
from serving.settings import load_settings

if TYPE_CHECKING:
    from features.checking import ViewHealth

HEAD = ("VIEW", "SAMPLED", "MISSING", "NEWEST", "TTL", "NULLS", "BEHIND", "DIFFERING")


def run(args: argparse.Namespace) -> int:
    """Prints a line per view; 0 only if all are healthy. Raises SettingsError or CommandFailed."""
    settings = load_settings({}, os.environ, args.config)
    check_repository(settings, os.environ)
    repo_path = settings.features.repo_path
    from features.checking import check
    from features.errors import FeatureError

    say(f"opening the Feast repository {repo_path or ''} …")
    try:
        found = check(Path(repo_path or "."), args.service, args.sample, args.days, say)
    except FeatureError as error:
        raise CommandFailed(str(error)) from error
    if args.json:
        print(json.dumps([{**asdict(view), "healthy": view.healthy} for view in found], indent=2))
    else:
        print(table(HEAD, [_row(view) for view in found]))
    return 0 if all(view.healthy for view in found) else 1


def _row(view: ViewHealth) -> tuple[str, ...]:
    nulls = "—" if view.nulls is None else f"{view.nulls:.1%}"
    counts = [str(n) for n in (view.sampled, view.missing)]
    return (view.view, *counts, _age(view.newest_age), _age(view.ttl), nulls, str(view.behind), str(view.differing))


def _age(seconds: float | None) -> str:
    """Seconds as the largest unit that fits."""
    if seconds is None:
        return "—"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One action, and how much it looks at."""
    actions = parser.add_subparsers(dest="what", required=True, metavar="ACTION")
    text = "per view: age of the newest value, null rate, TTL, and skew between the offline and the online store"
    own = actions.add_parser("check", help=text, description=text, allow_abbrev=False)
    own.add_argument("--service", metavar="NAME", help="only the views of this feature service")
    own.add_argument("--sample", type=int, default=100, metavar="N", help="entities per view (100)")
    own.add_argument("--days", type=float, default=30, metavar="D", help="how far back to read the offline store (30)")
    own.add_argument("--json", action="store_true", help="the same as JSON")
    own.add_argument("--config", type=Path, metavar="FILE", help="headway.yaml, for features.repo_path")


VERB = Verb(
    "features", "look at the online store: freshness, nulls, and skew against the offline store", add_flags, run
)
