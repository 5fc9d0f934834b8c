"""The words of `headway canary`, which scripts/canary.sh hands on: they need Python and kubectl, and nothing installed."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys

from serving.rollout import status
from serving.rollout.backends import NoSplit
from serving.rollout.canary import Canary, Driver, Failed
from serving.rollout.kubectl import ClusterError, Kubectl

HELP = "a canary on KServe: version and share in one patch, everything waited for, and back again"
WORDS = """\
  start VERSION PERCENT   another version, and its share of the traffic
  widen PERCENT           another share
  promote                 everything to the canary
  rollback [VERSION]      everything back, also after a promotion
  status                  who gets what, and why not

Without --route it needs KServe's Knative mode. A rollback restores MODEL_VERSION from the revision that it goes back to; with
--route, after a promotion, from VERSION. Any command can be run again after it was cut off."""
COUNTS = {"start": (2, 2), "widen": (1, 1), "promote": (0, 0), "rollback": (0, 1), "status": (0, 0)}


def flags(parser: argparse.ArgumentParser) -> None:
    """The words and options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = WORDS
    parser.set_defaults(misused=parser.error)
    parser.add_argument("words", nargs="*", metavar="WORD", help="start, widen, promote, rollback or status, as below")
    parser.add_argument(
        "--service", default="predictive-maintenance", metavar="NAME", help="InferenceService (%(default)s)"
    )
    parser.add_argument("--route", metavar="NAME", help="Standard mode: a weighted HTTPRoute, the stable service first")
    parser.add_argument("-n", "--namespace", default="headway", metavar="NS", help="namespace (%(default)s)")
    parser.add_argument("--timeout", type=seconds, default=600.0, metavar="SECONDS", help="bound of each wait (600)")
    parser.add_argument(
        "--dry-run", action="store_true", help="read the cluster, show the next command, change nothing"
    )


def seconds(text: str) -> float:
    """A number of seconds above 0; `10s` is one too, as kubectl writes it. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 < (found := float(text.removesuffix("s"))) < 1e6:
            return found
    raise argparse.ArgumentTypeError(f"a number of seconds above 0, not {text!r}")


def misuse(words: list[str]) -> str | None:
    """What is wrong with the words, before anything is looked at; None if nothing is."""
    verb, given = (words[0], words[1:]) if words else ("", [])
    least, most = COUNTS.get(verb, (1, 0))
    if not least <= len(given) <= most:
        return "start VERSION PERCENT, widen PERCENT, promote, rollback [VERSION] or status."
    if verb in ("start", "rollback") and given and not re.fullmatch("[1-9][0-9]*", given[0]):
        return f"VERSION is a number of the registry, not {given[0]!r}: an alias that moves cuts no revision, and pods would swap by themselves."
    if verb in ("start", "widen") and not _is_percent(given[-1]):
        return f"PERCENT is a whole number from 1 to 99, not {given[-1]!r}."
    return None


def _is_percent(text: str) -> bool:
    return text.isascii() and text.isdigit() and not text.startswith("0") and 1 <= int(text) <= 99


def run(args: argparse.Namespace) -> int:
    """Runs one command; 0 if what was asked for is so, 1 if not, 2 for words that make no sense."""
    if wrong := misuse(args.words):
        args.misused(wrong)
    kubectl = Kubectl(args.namespace)
    canary = Canary(kubectl, args.service, args.route)
    try:
        if args.words == ["status"]:
            print("\n".join(status.lines(canary.observe(), kubectl)))
        else:
            Driver(canary, kubectl.shown, _out, _err, args.timeout, dry_run=args.dry_run).run(args.words)
    except (Failed, ClusterError, NoSplit) as error:
        _err(f"{error}{_elsewhere(args) if 'NotFound' in str(error) else ''}")
        return 1
    except KeyboardInterrupt:
        _err("Stopped; what was changed stays. Next: `status`, or the same command again.")
        return 130
    return 0


def _elsewhere(args: argparse.Namespace) -> str:
    return f" (in namespace {args.namespace}; -n, --service and --route name others)"


def _out(text: str) -> None:
    print(text, flush=True)


def _err(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """As a program of its own."""
    parser = argparse.ArgumentParser(prog="scripts/canary.sh", description=HELP, allow_abbrev=False)
    flags(parser)
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
