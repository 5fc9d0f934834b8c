"""`headway promote` and `headway rollback`: move an alias in MLflow, say what changes, and remember it there."""

from __future__ import annotations

import argparse
import getpass
from typing import TYPE_CHECKING

from registry.policies import STAGES
from serving.commands.base import Verb, registry_flags, registry_settings, say
from serving.settings import SettingsError

if TYPE_CHECKING:
    from registry.promotions import Plan, Promotions


def promote(args: argparse.Namespace) -> int:
    """Moves the alias, the stage, or both to one version. Raises SettingsError, or what the registry raises."""
    if args.alias is None and args.stage is None:
        raise SettingsError("promote to what? Give --alias champion, --stage Production, or both")
    if not (args.version.isascii() and args.version.isdigit()):
        raise SettingsError(f"{args.version[:64]!r} is no version number")
    promotions, version = _promotions(args), str(int(args.version))
    if args.alias is not None:
        _move(promotions, promotions.plan_promotion(args.name, version, args.alias), args.user)
    if args.stage is not None:
        _stage(promotions, args, version)
    return 0


def rollback(args: argparse.Namespace) -> int:
    """Moves the alias to the version before, by its history. Raises what the registry raises."""
    promotions = _promotions(args)
    _move(promotions, promotions.plan_rollback(args.name, args.alias), args.user)
    return 0


def _promotions(args: argparse.Namespace) -> Promotions:
    settings = registry_settings(args)
    from registry.promotions import Promotions

    return Promotions(settings.registry.tracking_uri, settings.registry.registry_uri)


def _move(promotions: Promotions, plan: Plan, user: str) -> None:
    for version in plan.skipped:
        say(f"passing over version {version}: it is deleted, or not READY in the registry")
    if plan.before == plan.after:
        print(f"{plan.alias}: {plan.after} already; nothing changes")
        return
    change = f"{plan.alias}: {plan.before or 'nothing'} → {plan.after}"
    say(f"moving {change} …")
    promotions.move(plan, user)
    print(change)
    say(f"servers of models:/{plan.name}@{plan.alias} switch when they next look (headway models shows it)")


def _stage(promotions: Promotions, args: argparse.Namespace, version: str) -> None:
    plan = promotions.plan_stage(args.name, version, args.stage, archive=args.archive_existing)
    serves = plan.serves or "nothing"
    if plan.before == plan.stage and plan.serves == version:
        print(f"{plan.stage}: {version} already; nothing changes")
        return
    say(f"moving version {version}: {plan.before} → {plan.stage} …")
    if plan.before in ("Production", "Staging") and plan.before != plan.stage:
        say(f"models:/{plan.name}/{plan.before} then means the highest number that is left in {plan.before}")
    promotions.move_stage(plan, archive=args.archive_existing)
    if plan.higher is None:
        print(f"{plan.stage}: {serves} → {version}")
        return
    print(f"{plan.stage}: {serves} as before; version {version} is in the stage too")
    say(
        f"warning: models:/{plan.name}/{plan.stage} means the highest number in the stage, which is version "
        f"{plan.higher}; to make it {version}, run this again with --archive-existing"
    )


def stage(word: str) -> str:
    """A stage in MLflow's spelling, from any case."""
    if word.lower() not in STAGES:
        raise argparse.ArgumentTypeError(f"{word[:64]!r} is not one of {', '.join(STAGES.values())}")
    return STAGES[word.lower()]


def _user() -> str:
    """The login name; a container's user may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def promote_flags(parser: argparse.ArgumentParser) -> None:
    """A model, a version, and where to."""
    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("version", metavar="VERSION", help="the version's number")
    parser.add_argument("--alias", metavar="ALIAS", help="the alias to move, for example champion")
    parser.add_argument("--stage", type=stage, metavar="STAGE", help="the stage to move it to: Production, Staging, …")
    parser.add_argument(
        "--archive-existing", action="store_true", help="with --stage: archive what else is in that stage"
    )
    _common(parser)


def rollback_flags(parser: argparse.ArgumentParser) -> None:
    """A model and its alias."""
    parser.add_argument("name", metavar="NAME", help="the registered model")
    parser.add_argument("--alias", metavar="ALIAS", default="champion", help="the alias to move back (champion)")
    _common(parser)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--user", default=_user(), help="who is remembered in the history (the login name)")
    registry_flags(parser)


PROMOTE = Verb("promote", "move an alias or a stage of the registry to a version", promote_flags, promote)
ROLLBACK = Verb("rollback", "move an alias of the registry back to the version before", rollback_flags, rollback)
