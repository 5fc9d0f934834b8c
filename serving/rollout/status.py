"""Who gets what, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from serving.rollout.backends import Backend, Route
from serving.rollout.kubectl import Cluster
from serving.rollout.refusals import not_knative
from serving.rollout.revisions import Revision, Service


def lines(seen: Service | Route, cluster: Cluster) -> Iterator[str]:
    """A line per revision or backend, and one for what is not as the spec says."""
    yield from _of_service(seen, cluster) if isinstance(seen, Service) else _of_route(seen, cluster)


def _of_service(service: Service, cluster: Cluster) -> Iterator[str]:
    if refusal := not_knative(service):
        yield refusal.why
        return
    percent = "none" if service.percent is None else f"{service.percent}"
    yield f"the spec: version {service.version}, canaryTrafficPercent {percent}"
    for revision in service.revisions:
        if (share := service.share(revision.name)) or revision.pods or revision.wanted or revision == service.newest:
            yield f"{share:>3} %  version {revision.version}  {revision.name}  {_roles(service, revision)}"
            if revision.why_not:
                yield f"       {revision.why_not}"
            yield from _why(revision.complete or not (share or revision.wanted), revision.selector, cluster)
    for gone in {each.revision for each in service.traffic} - {each.name for each in service.revisions}:
        yield f"{service.share(gone):>3} %  version unknown  {gone}  is gone"
    if stale := service.stale:
        yield f"not settled yet: it is when {stale}"


def _roles(service: Service, revision: Revision) -> str:
    roles = {"newest": service.created, "rolled out": service.rolled_out, "rolled out before": service.previous}
    said = [role for role, name in roles.items() if name == revision.name]
    return ", ".join([*said, f"{revision.pods} of {max(revision.wanted, revision.least)} pods"])


def _why(fine: bool, selector: str, cluster: Cluster) -> Iterator[str]:
    if not fine and (why := cluster.why(selector)):
        yield f"       {why}"


def _of_route(route: Route, cluster: Cluster) -> Iterator[str]:
    if not route.accepted:
        yield f"no gateway goes by route {route.name}: {route.why_not}"
    total = route.stable.weight + route.canary.weight
    for backend in (route.stable, route.canary):
        share = round(100 * backend.weight / total) if total else 0
        yield f"{share:>3} %  version {backend.served or 'none'}  {backend.name}  {_state(backend)}"
        yield from _why(backend.unfinished is None, backend.selector, cluster)


def _state(backend: Backend) -> str:
    pods = f"{backend.pods} of {backend.wanted} pods"
    return pods if backend.version == backend.served else f"{pods}; the spec says version {backend.version}"
