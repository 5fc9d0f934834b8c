"""What is observed of an InferenceService in Knative mode.

Three things that a status says are history, and stay while they are true no more: `latestReadyRevision`,
`latestRolledoutRevision` and the condition Ready. A status is believed when the newest revision is that of the spec, and the
traffic is what the spec's percent makes of the rolled-out revision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.rollout.decisions import shares_text

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision: `pods` that run of `wanted`; `ready` may be long ago. `template` is its spec, None if unknown; `why_not`
    is what Knative says of one that it has given up, pods or not."""

    name: str
    version: str
    ready: bool
    pods: int
    wanted: int
    least: int = 0
    template: str | None = field(default=None, repr=False)
    why_not: str = ""

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
    """An InferenceService and its revisions, the oldest first, at one moment. `env` is the path of MODEL_VERSION, if any.

    `percent` is None where it splits nothing: at 100 KServe does what it does without one.
    """

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
    stopped: bool = False

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
    predictors = filter(_is_predictor, revisions)
    own = sorted(map(_revision, predictors), key=lambda each: each.name)
    percent = predictor.get("canaryTrafficPercent")
    return Service(
        name=service["metadata"]["name"],
        mode=mode_of(service),
        version=version_of(containers[0]),
        env=env_path(containers[0]),
        percent=None if percent is None or percent >= 100 else percent,
        created=known.get("latestCreatedRevision", ""),
        ready=known.get("latestReadyRevision", ""),
        rolled_out=known.get("latestRolledoutRevision", ""),
        previous=known.get("previousRolledoutRevision", ""),
        traffic=tuple(map(_share, known.get("traffic", []))),
        revisions=tuple(own),
        stopped=any(c["type"] == "Stopped" and c["status"] == "True" for c in status.get("conditions", [])),
    )


def mode_of(service: Json) -> str:
    """The mode that KServe has chosen; before that the annotation's, or nothing."""
    annotations = service["metadata"].get("annotations", {})
    chosen = service.get("status", {}).get("deploymentMode")
    return str(chosen or annotations.get("serving.kserve.io/deploymentMode", ""))


def is_knative(mode: str) -> bool:
    """Whether KServe makes revisions in that mode."""
    return mode in ("Knative", "Serverless")


def _is_predictor(revision: Json) -> bool:
    """A transformer of the same service has revisions too."""
    return bool(revision["metadata"].get("labels", {}).get("component", "predictor") == "predictor")


def _share(entry: Json) -> Share:
    return Share(entry.get("revisionName", ""), entry.get("percent", 0), bool(entry.get("latestRevision")))


def _revision(found: Json) -> Revision:
    status, metadata = found.get("status", {}), found["metadata"]
    ready: Json = next((c for c in status.get("conditions", []) if c["type"] == "Ready"), {})
    least = metadata.get("annotations", {}).get("autoscaling.knative.dev/min-scale", "0")
    return Revision(
        metadata["name"],
        version_of(found["spec"]["containers"][0]),
        ready.get("status") == "True",
        status.get("actualReplicas", 0),
        status.get("desiredReplicas", 0),
        int(least) if least.isdigit() else 0,
        repr(_sorted(found["spec"])),
        str(ready.get("message") or ready.get("reason") or "")[:300] if ready.get("status") == "False" else "",
    )


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    return [_sorted(item) for item in value] if isinstance(value, list) else value


def _index(container: Json) -> int | None:
    return next((i for i, each in enumerate(container.get("env", [])) if each["name"] == "MODEL_VERSION"), None)


def env_path(container: Json) -> str | None:
    """Where MODEL_VERSION stands in an InferenceService whose first container this is; None too if it is taken from elsewhere."""
    index = _index(container)
    return (
        None if index is None or "value" not in container["env"][index] else f"/spec/predictor/containers/0/env/{index}"
    )


def version_of(container: Json) -> str:
    """The registry's version that a container serves, or nothing."""
    index = _index(container)
    return "" if index is None else str(container["env"][index].get("value", ""))
