"""The `headway` command: parses the words, runs the verb, and turns what went wrong into a sentence and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from monitoring.masking import masked
from registry.errors import RegistryError
from serving.commands import VERBS
from serving.commands.base import CommandFailed
from serving.settings import SettingsError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 only on success, 2 for a wrong flag or setting."""
    args = parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (SettingsError, CommandFailed, RegistryError) as error:
        print(f"headway: {masked(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    made = argparse.ArgumentParser(
        prog="headway", description="A KServe-compatible model server for the MLflow registry."
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in VERBS:
        own = verbs.add_parser(verb.name, help=verb.help, description=verb.help, allow_abbrev=False)
        own.set_defaults(run=verb.run)
        verb.flags(own)
    return made


if __name__ == "__main__":
    sys.exit(main())
