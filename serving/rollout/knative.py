"""What the verbs of a canary make of an InferenceService in Knative mode.

Everything is decided anew from what the cluster shows, so that any command can be run again after it was cut off. A step
counts as done only when its revision is the newest, has its share, and has its pods.
"""

from __future__ import annotations

from serving.rollout.decisions import Decision, Done, Operation, Patch, Wait, version_moves
from serving.rollout.refusals import (
    gone,
    impossible,
    in_flight_already,
    nameless,
    not_in_flight,
    other_version,
    refuse,
    somebody_else,
)
from serving.rollout.revisions import Revision, Service

PERCENT = "/spec/predictor/canaryTrafficPercent"
#: The newest revision keeps this much while the one before it gets its pods back: KServe steps back at any percent below 100.
WARMING = 99


def start(service: Service, version: str, percent: int, *, begun: bool) -> Decision:
    """Another version, and its share of the traffic, in one patch. `begun`: this command has made its patch."""
    if refusal := impossible(service):
        return refusal
    if (service.version, service.percent) == (version, percent):
        return _until_shared(service, percent) or Done(_done(service, f"Version {version} has its {percent} %."))
    if begun:
        return somebody_else(service)
    if service.rolled_out and service.percent is not None and not (service.alone and service.stale is None):
        return in_flight_already(service)
    if service.version == version:
        return refuse(
            service,
            f"MODEL_VERSION is {version} already: the percent alone cuts no revision, it takes the rolled-out one back",
            "status",
        )
    if not service.rolled_out:
        why = "something is rolled out: until then KServe ignores the percent, and gives everything to what is ready"
        return Wait(why, service.newest.selector if service.newest else None)
    if stale := service.stale:
        return Wait(stale)
    if service.rolled_out != service.ready:
        return Wait(f"revision {service.ready} is rolled out")
    moved = version_moves(_env(service), service.version, version)
    return Patch(_target(service), (*moved, {"op": "add", "path": PERCENT, "value": percent}))


def widen(service: Service, percent: int, *, begun: bool) -> Decision:
    """Another share for the canary."""
    if refusal := impossible(service) or not_in_flight(service):
        return refusal
    if service.percent == percent:
        return _until_shared(service, percent) or Done(
            _done(service, f"Version {service.version} has its {percent} %.")
        )
    if begun:
        return somebody_else(service)
    less = percent < (service.percent or 0)
    if less and service.revision(service.rolled_out) is None:
        return gone(service, service.rolled_out)
    waits = _until_fit(service) or (_until_able(service) if less else None)
    return waits or Patch(_target(service), (*_as_read(service), _percent(percent)))


def promote(service: Service, *, begun: bool) -> Decision:
    """Everything to the canary: the percent goes."""
    if refusal := impossible(service):
        return refusal
    if service.percent is None and (begun or service.stale or service.rolled_out != service.created):
        return _until_rolled_out(service) or Done(_done(service, _written(service)))
    if refusal := not_in_flight(service):
        return refusal
    if begun:
        return somebody_else(service)
    return _until_fit(service) or Patch(_target(service), (*_as_read(service), {"op": "remove", "path": PERCENT}))


def roll_back(service: Service, version: str | None, *, begun: bool) -> Decision:
    """Everything back to the version before, also after a promotion, in steps of which none gives it to what is not there.

    A canary in flight: percent 0. One that is rolled out: percent 99, at which KServe steps back by one revision; 0 when
    that has its pods again. Then the spec is restored, which cuts a revision; when that is there, the percent goes.
    """
    if refusal := impossible(service):
        return refusal
    if service.percent is None:
        return _back_from_everything(service, version, begun=begun)
    good = service.revision(service.rolled_out)
    if good is None:
        return gone(service, service.rolled_out)
    if service.percent > 0:
        return _back_from_share(service, version)
    if good.version and (other := other_version(service, good, version)):
        return other
    return _restore(service, good, version or good.version)


def _back_from_everything(service: Service, version: str | None, *, begun: bool) -> Decision:
    """No percent: either the end of a roll-back, or its beginning after a promotion."""
    if stale := service.stale:
        return Wait(stale)
    newest = service.newest
    assert newest is not None
    if service.rolled_out != newest.name:
        if begun or service.ready == newest.name:
            return Wait(f"revision {newest.name} is rolled out", newest.selector)
        return _back_from_nothing(service, version)
    if begun:
        return Done(_done(service, _written(service)))
    before = service.revision(service.previous)
    if not service.previous or service.previous == newest.name:
        return refuse(service, "There is no earlier revision to go back to", "start VERSION PERCENT")
    if before is None:
        return gone(service, service.previous)
    if before.version == service.version:
        why = f"The revision before this one has version {before.version} too"
        return refuse(service, why, "start VERSION PERCENT")
    if refusal := nameless(before, version, service) or other_version(service, before, version):
        return refusal
    return Patch(_target(service), (*_as_read(service), _percent(WARMING)))


def _back_from_nothing(service: Service, version: str | None) -> Decision:
    """The newest revision was given everything, and never got ready: with a percent it does not get it when it does.

    By way of 99, for it may be ready by now, and the good one be losing its pods.
    """
    good = service.revision(service.rolled_out)
    if good is None:
        return gone(service, service.rolled_out)
    if refusal := nameless(good, version, service) or other_version(service, good, version):
        return refusal
    return _until_able(service) or Patch(_target(service), (*_as_read(service), _percent(WARMING)))


def _back_from_share(service: Service, version: str | None) -> Decision:
    """A percent above 0: the good revision gets everything when it can take it.

    Not before the canary's own revision is cut: until then the 0 would mean the revision that is rolled out.
    """
    if unclear := service.uncut or (service.stale if service.steps_back or service.percent == WARMING else None):
        return Wait(unclear)
    if service.alone:
        return refuse(service, "There is no earlier revision to go back to", "start VERSION PERCENT")
    good = service.revision(service.rolled_out)
    if good and (other := other_version(service, good, version)):
        return other
    return _until_able(service) or Patch(_target(service), (*_as_read(service), _percent(0)))


def _restore(service: Service, good: Revision, version: str) -> Decision:
    """Percent 0: the good revision has everything. What is left is to make the spec say so too."""
    newest = service.newest
    if stale := service.stale:
        return Wait(stale, newest.selector if newest else None)
    assert newest is not None
    if not version:
        return refuse(service, f"Revision {good.name} names no MODEL_VERSION", "rollback VERSION")
    if service.version != version:
        moved = version_moves(_env(service), service.version, version)
        return Patch(_target(service), (*_as_read(service), *moved))
    if newest.name == good.name:
        return Patch(_target(service), (*_as_read(service), {"op": "remove", "path": PERCENT}))
    if newest.template != good.template and version == good.version:
        return refuse(
            service,
            f"Revision {newest.name} differs from {good.name} in more than the version. The percent stays at 0: restore the rest "
            f"of the spec, and remove {PERCENT} when the revision is ready",
            "status",
        )
    if service.ready != newest.name or not newest.complete:
        return Wait(f"{_pods(newest)}; {good.name} has everything meanwhile", newest.selector)
    return Patch(_target(service), (*_as_read(service), {"op": "remove", "path": PERCENT}))


# -- what they share ----------------------------------------------------------------------------------------------


def _target(service: Service) -> str:
    return f"inferenceservice/{service.name}"


def _env(service: Service) -> str:
    assert service.env is not None
    return service.env


def _percent(value: int) -> Operation:
    return {"op": "add", "path": PERCENT, "value": value}


def _as_read(service: Service) -> tuple[Operation, ...]:
    """Tests that fail the patch if version or percent are not those that were decided upon."""
    version: Operation = {"op": "test", "path": f"{_env(service)}/value", "value": service.version}
    if service.percent is None:
        return (version,)
    return version, {"op": "test", "path": PERCENT, "value": service.percent}


def _until_fit(service: Service) -> Wait | None:
    """Until the canary can take more: it is the newest, ready, with the share that it has been given, and has pods."""
    return _until_shared(service, service.percent or 0)


def _until_able(service: Service) -> Wait | None:
    """Until the rolled-out revision can take more. At 99 it is on its way back from nothing: there all its pods count."""
    good = service.revision(service.rolled_out)
    if good is None:
        return Wait(f"revision {service.rolled_out} can be read")
    able = good.complete and service.share(good.name) > 0 if service.percent == WARMING else good.pods > 0
    return None if able else Wait(f"{_pods(good)}, so that nobody waits for it", good.selector)


def _until_shared(service: Service, percent: int) -> Wait | None:
    newest = service.newest
    if stale := service.stale:
        return Wait(stale, newest.selector if newest else None)
    assert newest is not None
    if service.ready != newest.name or not newest.complete:
        return Wait(_pods(newest), newest.selector)
    return None if service.share(newest.name) == percent else Wait(f"revision {newest.name} has {percent} %")


def _until_rolled_out(service: Service) -> Wait | None:
    newest = service.newest
    if stale := service.stale:
        return Wait(stale, newest.selector if newest else None)
    assert newest is not None
    if service.rolled_out != newest.name or service.share(newest.name) != 100:
        return Wait(f"revision {newest.name} is rolled out and has 100 %", newest.selector)
    return None


def _pods(revision: Revision) -> str:
    least = max(1, revision.wanted, revision.least)
    said = f"revision {revision.name} (version {revision.version}) has {least} pods; it has {revision.pods}"
    if revision.why_not:
        return f"{said}: {revision.why_not}"
    asleep = not (revision.pods or revision.wanted or revision.least)
    return f"{said} (where it may scale to none, a request wakes it)" if asleep else said


def _done(service: Service, what: str) -> str:
    return f"{what} {service.now}"


def _written(service: Service) -> str:
    """What makes the next `kubectl apply` keep this."""
    return (
        f'Version {service.version} is rolled out. Write MODEL_VERSION "{service.version}" into the manifest, and no '
        "canaryTrafficPercent: the next apply would otherwise undo this."
    )
