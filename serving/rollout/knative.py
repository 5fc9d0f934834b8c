"""What is observed of an InferenceService in Knative mode, and what the verbs of a canary make of it.

Everything is decided anew from what the cluster shows, so that any command can be run again after it was cut off. Three
things that a status says are history, and stay while they are true no more: `latestReadyRevision`, `latestRolledoutRevision`
and the condition Ready. So a step counts as done only when the newest revision is that of the spec, the traffic is what the
spec's percent makes of the rolled-out revision, and the pods are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.rollout.decisions import Decision, Done, Operation, Patch, Refuse, Wait, shares_text, version_moves

PERCENT = "/spec/predictor/canaryTrafficPercent"
#: The newest revision keeps this much while the one before it gets its pods back: KServe steps back at any percent below 100.
WARMING = 99
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision: `pods` that run of `wanted`; `ready` may be long ago. `template` is its spec, None if unknown."""

    name: str
    version: str
    ready: bool
    pods: int
    wanted: int
    least: int = 0
    template: str | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """Whether it has all the pods that it should have."""
        return self.pods >= max(1, self.wanted, self.least)

    @property
    def selector(self) -> str:
        """The label of its pods."""
        return f"serving.knative.dev/revision={self.name}"


@dataclass(frozen=True, slots=True)
class Share:
    """One entry of the traffic list. `newest` is the one that goes to whatever revision is the latest ready one."""

    revision: str
    percent: int
    newest: bool


@dataclass(frozen=True, slots=True)
class Service:
    """An InferenceService and its revisions, the oldest first, at one moment. `env` is the path of MODEL_VERSION, if any."""

    name: str
    mode: str
    version: str
    env: str | None
    percent: int | None
    created: str
    ready: str
    rolled_out: str
    previous: str
    traffic: tuple[Share, ...]
    revisions: tuple[Revision, ...]

    # -- what follows ---------------------------------------------------------------------------------------------

    def revision(self, name: str) -> Revision | None:
        """The revision of that name, if it is still there."""
        return next((each for each in self.revisions if each.name == name), None)

    @property
    def newest(self) -> Revision | None:
        """The revision that was cut last."""
        return self.revisions[-1] if self.revisions else None

    def share(self, name: str) -> int:
        """Percent of the traffic that a revision has."""
        return sum(each.percent for each in self.traffic if each.revision == name)

    @property
    def now(self) -> str:
        """Who has how much, as a sentence."""
        versions: dict[str, int] = {}
        for each in self.traffic:
            found = self.revision(each.revision)
            said = f"version {found.version}" if found and found.version else f"revision {each.revision}"
            versions[said] = versions.get(said, 0) + each.percent
        return f"Now {shares_text(versions.items())}."

    @property
    def stale(self) -> str | None:
        """What shows that the controllers have not acted on the spec yet; None if they have."""
        if uncut := self.uncut:
            return uncut
        if self.steps_back:
            return f"KServe goes back to revision {self.previous}"
        return None if self.traffic == self._due else "the traffic is what the percent says"

    @property
    def uncut(self) -> str | None:
        """What shows that no revision has been cut from the spec yet; None if the newest one is that of the spec."""
        newest = self.newest
        if newest is None or newest.version != self.version:
            return f"a revision with version {self.version} is cut"
        return None if self.created == newest.name else f"revision {newest.name} is the newest in the status"

    @property
    def alone(self) -> bool:
        """Whether the percent stands beside a revision that is rolled out: nothing newer is on its way."""
        return self.percent is not None and self.rolled_out == self.ready == self.created

    @property
    def steps_back(self) -> bool:
        """Whether KServe is going to take a revision that is rolled out back to the one before."""
        return self.alone and self.previous not in ("", self.rolled_out)

    @property
    def _due(self) -> tuple[Share, ...]:
        """The traffic that the spec makes of what is ready and rolled out."""
        if not self.ready:
            return ()
        if self.percent is None or not self.rolled_out:
            return (Share(self.ready, 100, newest=True),)
        return (Share(self.ready, self.percent, newest=True), Share(self.rolled_out, 100 - self.percent, newest=False))


# -- reading ------------------------------------------------------------------------------------------------------


def observe(service: Json, revisions: Sequence[Json]) -> Service:
    """The service as Kubernetes' API describes it."""
    predictor = service["spec"].get("predictor", {})
    status = service.get("status", {})
    known = status.get("components", {}).get("predictor", {})
    containers = predictor.get("containers") or [{}]
    annotations = service["metadata"].get("annotations", {})
    own = sorted(map(_revision, revisions), key=lambda each: each.name)
    return Service(
        name=service["metadata"]["name"],
        mode=status.get("deploymentMode") or annotations.get("serving.kserve.io/deploymentMode", "unknown"),
        version=version_of(containers[0]),
        env=env_path(containers[0]),
        percent=predictor.get("canaryTrafficPercent"),
        created=known.get("latestCreatedRevision", ""),
        ready=known.get("latestReadyRevision", ""),
        rolled_out=known.get("latestRolledoutRevision", ""),
        previous=known.get("previousRolledoutRevision", ""),
        traffic=tuple(map(_share, known.get("traffic", []))),
        revisions=tuple(own),
    )


def _share(entry: Json) -> Share:
    return Share(entry.get("revisionName", ""), entry.get("percent", 0), bool(entry.get("latestRevision")))


def _revision(found: Json) -> Revision:
    status, metadata = found.get("status", {}), found["metadata"]
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))
    least = metadata.get("annotations", {}).get("autoscaling.knative.dev/min-scale", "0")
    return Revision(
        metadata["name"],
        version_of(found["spec"]["containers"][0]),
        ready,
        status.get("actualReplicas", 0),
        status.get("desiredReplicas", 0),
        int(least) if least.isdigit() else 0,
        repr(_sorted(found["spec"])),
    )


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _index(container: Json) -> int | None:
    return next((i for i, each in enumerate(container.get("env", [])) if each["name"] == "MODEL_VERSION"), None)


def env_path(container: Json) -> str | None:
    """Where MODEL_VERSION stands in an InferenceService whose first container this is."""
    index = _index(container)
    return None if index is None else f"/spec/predictor/containers/0/env/{index}"


def version_of(container: Json) -> str:
    """The registry's version that a container serves, or nothing."""
    index = _index(container)
    return "" if index is None else str(container["env"][index].get("value", ""))


# -- the verbs ----------------------------------------------------------------------------------------------------


def impossible(service: Service) -> Refuse | None:
    """What no verb can work with."""
    if service.mode not in ("Knative", "Serverless"):
        return Refuse(
            f"InferenceService {service.name} is in mode {service.mode}, where KServe ignores canaryTrafficPercent and rolls a new "
            "version out to everybody. Use --route with overlays/standard-canary, or overlays/knative."
        )
    if service.env is None:
        return Refuse(
            f"InferenceService {service.name} has no MODEL_VERSION in its first container: there is no version to move."
        )
    return None


def start(service: Service, version: str, percent: int, *, begun: bool) -> Decision:
    """Another version, and its share of the traffic, in one patch. `begun`: this command has made its patch."""
    if refusal := impossible(service):
        return refusal
    if (service.version, service.percent) == (version, percent):
        return _until_shared(service, percent) or Done(_done(service, f"Version {version} has its {percent} %."))
    if begun:
        return _somebody_else(service)
    if service.percent is not None:
        return _refuse(service, "A canary is in flight, and a second one would replace it", "promote` or `rollback")
    if service.version == version:
        return _refuse(
            service,
            f"MODEL_VERSION is {version} already: the percent alone cuts no revision, it takes the rolled-out one back",
            "status",
        )
    if not service.rolled_out:
        return Wait(
            "something is rolled out: until then KServe ignores the percent, and gives everything to what is ready"
        )
    if stale := service.stale:
        return Wait(stale)
    moved = version_moves(_env(service), service.version, version)
    return Patch(_target(service), (*moved, {"op": "add", "path": PERCENT, "value": percent}))


def widen(service: Service, percent: int, *, begun: bool) -> Decision:
    """Another share for the canary."""
    if refusal := impossible(service) or _not_in_flight(service):
        return refusal
    if service.percent == percent:
        return _until_shared(service, percent) or Done(
            _done(service, f"Version {service.version} has its {percent} %.")
        )
    if begun:
        return _somebody_else(service)
    waits = _until_fit(service) or (_until_able(service) if percent < (service.percent or 0) else None)
    return waits or Patch(_target(service), (*_as_read(service), _percent(percent)))


def promote(service: Service, *, begun: bool) -> Decision:
    """Everything to the canary: the percent goes."""
    if refusal := impossible(service):
        return refusal
    if service.percent is None and (begun or service.stale or service.rolled_out != service.created):
        return _until_rolled_out(service) or Done(_done(service, _written(service)))
    if refusal := _not_in_flight(service):
        return refusal
    if begun:
        return _somebody_else(service)
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
        return _gone(service, service.rolled_out)
    if service.percent > 0:
        return _back_from_share(service)
    return _restore(service, good, version or good.version)


def _back_from_everything(service: Service, version: str | None, *, begun: bool) -> Decision:
    """No percent: either the end of a roll-back, or its beginning after a promotion."""
    if stale := service.stale:
        return Wait(stale)
    newest = service.newest
    assert newest is not None
    if service.rolled_out != newest.name:
        return Wait(f"revision {newest.name} is rolled out, or a percent stands beside it", newest.selector)
    if begun:
        return Done(_done(service, _written(service)))
    before = service.revision(service.previous)
    if not service.previous or service.previous == newest.name:
        return _refuse(service, "There is no earlier revision to go back to", "start VERSION PERCENT")
    if before is None:
        return _gone(service, service.previous)
    if before.version == service.version:
        why = f"The revision before this one has version {before.version} too"
        return _refuse(service, why, "start VERSION PERCENT")
    if not (version or before.version):
        return _refuse(service, f"Revision {before.name} names no MODEL_VERSION", "rollback VERSION")
    return Patch(_target(service), (_as_read(service)[0], _percent(WARMING)))


def _back_from_share(service: Service) -> Decision:
    """A percent above 0: the good revision gets everything when it can take it.

    Not before the canary's own revision is cut: until then the 0 would mean the revision that is rolled out.
    """
    if unclear := service.uncut or (service.stale if service.steps_back else None):
        return Wait(unclear)
    if service.alone:
        return _refuse(service, "There is no earlier revision to go back to", "start VERSION PERCENT")
    return _until_able(service) or Patch(_target(service), (*_as_read(service), _percent(0)))


def _restore(service: Service, good: Revision, version: str) -> Decision:
    """Percent 0: the good revision has everything. What is left is to make the spec say so too."""
    newest = service.newest
    if stale := service.stale:
        return Wait(stale, newest.selector if newest else None)
    assert newest is not None
    if not version:
        return _refuse(service, f"Revision {good.name} names no MODEL_VERSION", "rollback VERSION")
    if service.version != version:
        return Patch(_target(service), version_moves(_env(service), service.version, version))
    if newest.name == good.name:
        return Patch(_target(service), (*_as_read(service), {"op": "remove", "path": PERCENT}))
    if newest.template != good.template and version == good.version:
        return _refuse(
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


def _not_in_flight(service: Service) -> Refuse | None:
    if service.percent is None:
        why = "No canary is in flight. A percent alone would not make one: it takes the rolled-out revision back"
        return _refuse(service, why, "start VERSION PERCENT")
    if service.percent == 0:
        return _refuse(service, "This canary was rolled back", "rollback")
    return None


def _until_fit(service: Service) -> Wait | None:
    """Until the canary can take more: it is the newest, ready, with the share that it has been given, and has pods."""
    if service.alone and not service.stale:
        return Wait("a newer revision than the rolled-out one is there")
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
    return f"revision {revision.name} (version {revision.version}) has {least} pods; it has {revision.pods}"


def _refuse(service: Service, why: str, following: str) -> Refuse:
    return Refuse(f"{why}. {service.now} Next: `{following}`.")


def _somebody_else(service: Service) -> Refuse:
    said = "no percent" if service.percent is None else f"{service.percent} percent"
    why = f"Somebody else changed {service.name} meanwhile: it says version {service.version} and {said}"
    return _refuse(service, why, "status")


def _gone(service: Service, revision: str) -> Refuse:
    why = (
        f"Revision {revision} cannot be read: it is gone, and with it what it served"
        if revision
        else "Nothing was ever rolled out"
    )
    return _refuse(service, why, "start VERSION PERCENT")


def _done(service: Service, what: str) -> str:
    return f"{what} {service.now}"


def _written(service: Service) -> str:
    """What makes the next `kubectl apply` keep this."""
    return (
        f'Version {service.version} is rolled out. Write MODEL_VERSION "{service.version}" into the manifest, and no '
        "canaryTrafficPercent: the next apply would otherwise undo this."
    )
