"""Promotion and rollback: aliases and stages are moved in MLflow, and each move of an alias is remembered there.

The history of an alias is the registered model's tag `headway.history.<alias>`: a JSON list of moves, oldest first, of
which the newest twenty are kept. MLflow's databases hold 5000 characters per tag.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mlflow.entities.model_registry import ModelVersion as MlflowVersion

from registry.client import asking, connect
from registry.errors import RegistryRefused, VersionNotFound

TAG = "headway.history."
KEPT = 20
LONGEST_USER = 64
#: `noticed` is a move that someone made without Headway, found before the next one with it.
Kind = Literal["promote", "rollback", "noticed"]


@dataclass(frozen=True, slots=True)
class Move:
    """One move of an alias. `before` or `after` None: the alias was not there. `at` is RFC 3339, in UTC."""

    kind: Kind
    before: str | None
    after: str | None
    at: str
    by: str | None

    def plain(self) -> dict[str, str | None]:
        """As it is written."""
        return {"at": self.at, "by": self.by, "how": self.kind, "from": self.before, "to": self.after}


@dataclass(frozen=True, slots=True)
class Plan:
    """A move of an alias that has not been made. `skipped`: versions of the history that cannot be gone back to."""

    name: str
    alias: str
    before: str | None
    after: str
    kind: Kind
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A move to a stage that has not been made.

    `before` is the version's stage now, `serves` what the new stage means now, and `higher` what it will mean if that
    is not this version: MLflow takes the highest number in a stage.
    """

    name: str
    version: str
    stage: str
    before: str
    serves: str | None
    higher: str | None


class Promotions:
    """Moves aliases and stages of one registry. Methods block.

    All raise RegistryUnavailable, RegistryRefused, and VersionNotFound. Nothing in MLflow makes "look and then move"
    one step: of two people who move an alias at once the later one wins, and the history may lack a move, which the
    next one notices.
    """

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        self._client = connect(tracking_uri, registry_uri)

    def plan_promotion(self, name: str, version: str, alias: str) -> Plan:
        """What moving the alias to this version would change. Refuses a version that is not READY."""
        self.check(name, version)
        return Plan(name, alias, self._carrier(name, alias), version, "promote")

    def plan_rollback(self, name: str, alias: str) -> Plan:
        """Where the alias was before, by its history; versions that are gone are passed over.

        Raises RegistryRefused if the history has nothing to go back to.
        """
        before = self._carrier(name, alias)
        skipped: list[str] = []
        for version in reversed(trail(self.history(name, alias), before)):
            if version in (before, *skipped):
                continue
            if self._usable(name, version):
                return Plan(name, alias, before, version, "rollback", tuple(skipped))
            skipped.append(version)
        gone = f" but {', '.join(skipped)}, which cannot serve any more" if skipped else ""
        raise RegistryRefused(
            f"there is nothing to roll back to: the history of {alias} ({TAG}{alias}) has no earlier version{gone}; "
            f"name one: headway promote {name} VERSION --alias {alias}"
        )

    def move(self, plan: Plan, user: str) -> None:
        """Moves the alias and then writes its history: a move that is not made is never in it."""
        with asking(f"alias {plan.alias!r} of model {plan.name!r}"):
            self._client.set_registered_model_alias(plan.name, plan.alias, plan.after)
        now, by = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), user[:LONGEST_USER]
        moves = noticed(self.history(plan.name, plan.alias), plan.before, now)
        moves.append(Move(plan.kind, plan.before, plan.after, now, by))
        text = json.dumps([move.plain() for move in moves[-KEPT:]], separators=(",", ":"), ensure_ascii=False)
        with asking(f"the history of {plan.alias!r} of model {plan.name!r}"):
            self._client.set_registered_model_tag(plan.name, TAG + plan.alias, text)

    def history(self, name: str, alias: str) -> list[Move]:
        """The remembered moves, oldest first. Raises RegistryRefused if the tag is not what this module writes."""
        with asking(f"model {name!r}"):
            text = self._client.get_registered_model(name).tags.get(TAG + alias, "[]")
        try:
            return [Move(m["how"], m["from"], m["to"], m["at"], m["by"]) for m in json.loads(text)]
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryRefused(f"the tag {TAG}{alias} of model {name!r} is no history; delete or mend it") from error

    def plan_stage(self, name: str, version: str, stage: str, *, archive: bool) -> StagePlan:
        """What moving the version to this stage would change."""
        found = self.check(name, version)
        others = [v for v in self._in_stage(name, stage) if v != int(version)]
        higher = max((v for v in others if v > int(version)), default=None)
        now = others + [int(version)] * (found.current_stage == stage)
        return StagePlan(
            name,
            version,
            stage,
            before=str(found.current_stage),
            serves=str(max(now)) if now else None,
            higher=None if archive or higher is None else str(higher),
        )

    def move_stage(self, plan: StagePlan, *, archive: bool) -> None:
        """Moves the version to the stage; `archive` moves whatever else is there to Archived."""
        with asking(f"stage {plan.stage!r} of model {plan.name!r}"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # deprecated since 2.9, and still there
            self._client.transition_model_version_stage(plan.name, plan.version, plan.stage, archive)

    def check(self, name: str, version: str) -> MlflowVersion:
        """The version. Raises VersionNotFound, or RegistryRefused if its registration is not complete."""
        with asking(f"version {version} of model {name!r}"):
            found = self._client.get_model_version(name, version)
        if found.status != "READY":
            raise RegistryRefused(f"version {version} of model {name!r} is {found.status}, not READY, in the registry")
        return found

    def _usable(self, name: str, version: str) -> bool:
        try:
            self.check(name, version)
        except (VersionNotFound, RegistryRefused):
            return False
        return True

    def _carrier(self, name: str, alias: str) -> str | None:
        with asking(f"model {name!r}"):
            found = self._client.get_registered_model(name).aliases.get(alias)
        return None if found is None else str(found)

    def _in_stage(self, name: str, stage: str) -> list[int]:
        with asking(f"model {name!r}"):
            found = self._client.search_model_versions(f"name='{name}'")
        return [int(v.version) for v in found if v.current_stage == stage]


def noticed(moves: Sequence[Move], now: str | None, at: str) -> list[Move]:
    """The moves, and one more if the alias is not where they left it."""
    left = moves[-1].after if moves else now
    return [*moves] if left == now else [*moves, Move("noticed", left, now, at, None)]


def trail(moves: Sequence[Move], now: str | None) -> list[str]:
    """The versions to go back through from `now`, the nearest last.

    A promotion, ours or a noticed one, leaves the version that it left on the trail; a rollback takes the trail up to
    where it went. So rolling back twice goes back two steps, not to and fro.
    """
    steps: list[str | None] = []
    for move in noticed(moves, now, ""):
        if move.kind == "rollback":
            while steps and steps.pop() != move.after:
                pass
        else:
            steps.append(move.before)
    return [step for step in steps if step is not None]
