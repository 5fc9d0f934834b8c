"""`headway verify`: would this version be loaded, and if not, why? Fetches it and reads it; loads nothing."""

from __future__ import annotations

import argparse
import json
from typing import Any

from monitoring.masking import masked
from serving.commands.base import Verb
from serving.commands.fetching import Fetched, entry_flags, fetched


def run(args: argparse.Namespace) -> int:
    """Prints the verdict; 0 only if the version would be loaded. Raises SettingsError, or what the registry raises."""
    with fetched(args.reference, args) as one:
        found = _examine(one)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else _text(found))
    return 0 if found["loads"] else 1


def _examine(one: Fetched) -> dict[str, Any]:
    from serving.verdict import judge

    verdict = judge(one.version, one.files, one.options)
    return {
        "reference": one.reference, "version": one.version.uri, "source": masked(one.version.source), "format": verdict.format,
        "size_bytes": one.files.size, "digest": f"sha256:{one.files.digest}", "signature": str(verdict.signature),
        "loads": not verdict.reasons, "reasons": list(verdict.reasons),
    }  # fmt: skip


def _text(found: dict[str, Any]) -> str:
    """One fact per line, then the verdict, then each reason."""
    facts = ("reference", "version", "source", "format", "size_bytes", "digest", "signature")
    lines = [f"{fact.removesuffix('_bytes'):<10} {found[fact]}" for fact in facts]
    lines[facts.index("size_bytes")] += " bytes"
    lines.append(f"{'verdict':<10} {'would be loaded' if found['loads'] else 'refused'}")
    return "\n".join(lines + [f"- {reason}" for reason in found["reasons"]])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What to look at, and with whose settings."""
    parser.add_argument("reference", metavar="REFERENCE", help="models:/NAME/3, models:/NAME@alias, a folder, …")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    entry_flags(parser)


VERB = Verb("verify", "say whether a version would be loaded, and every reason why not", add_flags, run)
