"""What the verbs of a canary on Knative refuse, and in which words."""

from __future__ import annotations

from serving.rollout.decisions import Refuse, no_version
from serving.rollout.revisions import Revision, Service, is_knative


def impossible(service: Service) -> Refuse | None:
    """What no verb can work with."""
    if refusal := not_knative(service):
        return refusal
    if service.stopped:
        why = f"InferenceService {service.name} is stopped: its annotation serving.kserve.io/stop keeps it without pods"
        return Refuse(f"{why}. Next: remove that, and `status`.")
    return no_version(service.name) if service.env is None else None


def not_knative(service: Service) -> Refuse | None:
    """There are no revisions in other modes."""
    if not service.mode:
        return Refuse(
            f"KServe has not looked at InferenceService {service.name}: its status names no mode. If that stays so, look at "
            "KServe's controller. Next: the same command again."
        )
    if not is_knative(service.mode):
        return Refuse(
            f"InferenceService {service.name} is in mode {service.mode}, where KServe ignores canaryTrafficPercent and rolls a new "
            "version out to everybody. Use --route with overlays/standard-canary, or overlays/knative."
        )
    return None


def not_in_flight(service: Service) -> Refuse | None:
    """There is nothing to widen or to promote."""
    if service.percent is None:
        why = "No canary is in flight. A percent alone would not make one: it takes the rolled-out revision back"
        return refuse(service, why, "start VERSION PERCENT")
    if service.percent == 0:
        return refuse(service, "This canary was rolled back", "rollback")
    if service.alone and service.stale is None:
        why = f"Nothing newer than revision {service.rolled_out} is there, and the percent splits nothing"
        return refuse(service, why, "start VERSION PERCENT")
    return None


def in_flight_already(service: Service) -> Refuse:
    """One canary at a time."""
    if service.percent == 0:
        return refuse(service, "A canary was rolled back, and the spec not yet restored", "rollback")
    return refuse(service, "A canary is in flight, and a second one would replace it", "promote` or `rollback")


def somebody_else(service: Service) -> Refuse:
    """The spec is not what this command has made of it."""
    said = "no percent" if service.percent is None else f"{service.percent} percent"
    why = f"Somebody else changed {service.name} meanwhile: it says version {service.version} and {said}"
    return refuse(service, why, "status")


def other_version(service: Service, good: Revision, version: str | None) -> Refuse | None:
    """A version that is not the one to go back to: the spec would then roll out what nobody has tried, or has rejected."""
    if version in (None, good.version) or not (good.version or version == service.version):
        return None
    has = f"version {good.version}" if good.version else "no MODEL_VERSION"
    why = f"A roll-back goes to revision {good.name}, which has {has}, and not to version {version}"
    return refuse(service, why, "rollback" if good.version else "rollback VERSION")


def nameless(good: Revision, version: str | None, service: Service) -> Refuse | None:
    """A revision without MODEL_VERSION says nothing to restore."""
    if version or good.version:
        return None
    return refuse(service, f"Revision {good.name} names no MODEL_VERSION", "rollback VERSION")


def gone(service: Service, revision: str) -> Refuse:
    """There is no revision of that name to go back to."""
    if not revision:
        why = f"Nothing was ever rolled out: there is nothing to go back to. {service.now}"
        return Refuse(f"{why} Next: `status`, and a manifest with a version that gets ready.")
    why = f"Revision {revision} cannot be read: it is gone, and with it what it served"
    return refuse(service, why, "start VERSION PERCENT" if service.percent is None else "promote")


def refuse(service: Service, why: str, following: str) -> Refuse:
    """Why, who has how much, and what to type."""
    return Refuse(f"{why}. {service.now} Next: `{following}`.")
