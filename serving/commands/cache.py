"""`headway cache`: what is in the artifact cache, whether it is whole, and a backup that another machine can start from."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from registry import backup
from registry.cache import ArtifactCache
from registry.errors import CacheError
from registry.versions import ModelVersion
from serving.commands.base import CommandFailed, Verb, say
from serving.commands.table import table
from serving.settings import cache_folder, load_settings

Action = Callable[[argparse.Namespace, ArtifactCache], int]


def run(args: argparse.Namespace) -> int:
    """Runs one of the actions. Raises SettingsError, CommandFailed or CacheError."""
    settings = load_settings({}, os.environ, args.config)
    folder = cache_folder(settings, os.environ)
    if not (folder / "versions").is_dir() and args.what != "import":
        raise CommandFailed(f"there is no artifact cache at {folder}; set HEADWAY_REGISTRY__CACHE_DIR to yours")
    say(f"the artifact cache at {folder}")
    action: Action = args.action
    try:
        return action(args, ArtifactCache(folder, settings.registry.cache_bytes, "", _nothing))
    except OSError as error:
        raise CommandFailed(f"{error.filename or folder}: {error.strerror}") from error


def _nothing(version: ModelVersion, into: Path) -> None:
    raise CacheError("this command downloads nothing")


def _list(args: argparse.Namespace, cache: ArtifactCache) -> int:
    rows = [(r.uri, r.digest[:12], str(r.size), _when(r.used), r.registry.split(" ")[0]) for r in cache.records()]
    print(table(("VERSION", "DIGEST", "BYTES", "LAST USED", "REGISTRY"), rows))
    return 0


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _verify(args: argparse.Namespace, cache: ArtifactCache) -> int:
    damaged = cache.damaged()
    for record in damaged:
        print(f"damaged: {record.uri} {record.digest}")
    say(f"{len(cache.records()) - len(damaged)} whole, {len(damaged)} damaged (those are fetched again when needed)")
    return 1 if damaged else 0


def _prune(args: argparse.Namespace, cache: ArtifactCache) -> int:
    print(f"removed {cache.prune(args.bytes)} bytes; what a running server has loaded stays")
    return 0


def _export(args: argparse.Namespace, cache: ArtifactCache) -> int:
    print(f"{backup.export(cache, args.file, say)} versions exported to {args.file}")
    return 0


def _import(args: argparse.Namespace, cache: ArtifactCache) -> int:
    print(f"{backup.restore(cache, args.file, say)} versions imported")
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Five actions on one folder."""
    actions = parser.add_subparsers(dest="what", required=True, metavar="ACTION")
    known: tuple[tuple[str, str, Action], ...] = (
        ("list", "show the versions, least recently used first", _list),
        ("verify", "sum all files again; exit 1 if a version is damaged", _verify),
        ("prune", "remove least recently used versions that nobody has loaded", _prune),
        ("export", "write all versions, and which served last, to one tar file", _export),
        ("import", "add the versions of an exported file", _import),
    )
    for name, help, action in known:
        own = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        own.set_defaults(action=action)
        own.add_argument("--config", type=Path, metavar="FILE", help="headway.yaml, for registry.cache_dir")
        if name in ("export", "import"):
            own.add_argument("file", type=Path, metavar="FILE")
        if name == "prune":
            own.add_argument("--bytes", type=int, default=0, metavar="N", help="leave N bytes (0)")


VERB = Verb("cache", "list, verify, prune, export and import the artifact cache", add_flags, run)
