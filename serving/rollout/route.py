"""What the verbs of a canary make of a weighted HTTPRoute over two InferenceServices in Standard mode.

The first backend is the stable one, the second the canary. What a service's spec says is what it is going to serve; what
its Deployment has rolled out is what it serves. A gateway may not have taken a route: then nobody is split by it, whatever
its weights.
"""

from __future__ import annotations

from serving.rollout.backends import Backend, Route
from serving.rollout.decisions import Decision, Done, Operation, Patch, Refuse, Wait, no_version, version_moves


def start(route: Route, version: str, percent: int, *, begun: bool) -> Decision:
    """Another version into the canary's service; when its pods are there, its share."""
    canary = route.canary
    if canary.version == version and route.splits(percent):
        return _settled(route) or Done(f"Version {version} has its {percent} %. {route.now}")
    if canary.weight:
        return _somebody_else(route) if begun and canary.version != version else _in_flight_already(route)
    if refusal := _unusable(route) or _same(route, version):
        return refusal
    if canary.version != version:
        return _somebody_else(route) if begun else _move(canary, version)
    if unfinished := canary.unfinished:
        return Wait(unfinished, canary.selector)
    return _weights(route, percent)


def widen(route: Route, percent: int, *, begun: bool) -> Decision:
    """Another share for the canary."""
    if refusal := _not_in_flight(route):
        return refusal
    if route.splits(percent):
        return _settled(route) or Done(f"Version {route.canary.version} has its {percent} %. {route.now}")
    if begun:
        return _somebody_else(route)
    if unfinished := route.canary.unfinished:
        return Wait(unfinished, route.canary.selector)
    if route.stable.answering < 1 and route.gives_back(percent):
        return Wait(f"{route.stable.name} has a pod", route.stable.selector)
    return _weights(route, percent)


def promote(route: Route, *, begun: bool) -> Decision:
    """The canary's version into the stable service; when its pods are there, everything to that."""
    stable, canary = route.stable, route.canary
    if not canary.weight and (begun or stable.version == canary.version):  # or it was cut off behind its last change
        return _settled(route) or Done(f"{_written(stable)} {route.now}")
    if refusal := _not_in_flight(route) or _unusable(route):
        return refusal
    if unfinished := canary.unfinished:
        return Wait(unfinished, canary.selector)
    if stable.version != canary.version:
        return _move(stable, canary.version)
    if unfinished := stable.unfinished:
        return Wait(unfinished, stable.selector)
    return _weights(route, 0)


def roll_back(route: Route, version: str | None, *, begun: bool) -> Decision:
    """Everything to the stable service, with the version that it had: a promotion on its way has moved that already."""
    stable, canary = route.stable, route.canary
    if not (begun or canary.weight or version):
        return Refuse(
            f"No canary is in flight: {canary.name} has weight 0. {route.now} After a promotion, say which version to go back to. "
            f"Next: `rollback {stable.before or 'VERSION'}`."
        )
    midway = bool(canary.weight) and stable.version == canary.version
    good = version or (stable.before if midway else stable.version)
    if not good:
        return Refuse(f"{stable.name} is on its way to version {stable.version}. {route.now} Next: `rollback VERSION`.")
    if refusal := _unusable(route) or _other_version(route, version, midway):
        return refusal
    if stable.version != good:
        return _move(stable, good)
    if canary.weight:
        return _back_to(route)
    if unfinished := stable.unfinished:
        return Wait(unfinished, stable.selector)
    return _settled(route) or Done(f"{_written(stable)} {route.now}")


def _back_to(route: Route) -> Decision:
    """Weight 0, as soon as the stable service has a pod to answer with."""
    stable = route.stable
    if stable.answering < 1:
        return Wait(f"{stable.name} has a pod", stable.selector)
    return _weights(route, 0)


def _unusable(route: Route) -> Refuse | None:
    for each in (route.stable, route.canary):
        if each.env is None:
            return no_version(each.service)
    return None


def _same(route: Route, version: str) -> Refuse | None:
    """A canary of the stable version splits nothing, and its roll-back would look like that of a promotion on its way."""
    if route.stable.version != version:
        return None
    return Refuse(
        f"Version {version} is the stable one already. {route.now} Next: `start VERSION PERCENT` with another."
    )


def _other_version(route: Route, version: str | None, midway: bool) -> Refuse | None:
    """What a canary cannot be rolled back to: its own version, and one that nobody has tried; everybody would get it."""
    if version is None or not route.canary.weight:
        return None
    if version == route.canary.version:
        why = f"Version {version} is the canary's: a roll-back takes it away, and `promote` gives it everything"
    elif midway or version == route.stable.version:
        return None
    else:
        why = f"A roll-back of this canary goes to version {route.stable.version}, and not to version {version}"
    return Refuse(f"{why}. {route.now} Next: `rollback`.")


def _settled(route: Route) -> Wait | None:
    """Until a gateway goes by the weights, and the pods are there."""
    if not route.accepted:
        return Wait(f"a gateway goes by route {route.name} ({route.why_not})")
    behind = [each for each in (route.stable, route.canary) if each.weight]
    return next((Wait(each.unfinished, each.selector) for each in behind if each.unfinished), None)


def _not_in_flight(route: Route) -> Refuse | None:
    if route.canary.weight:
        return None
    return Refuse(
        f"No canary is in flight: {route.canary.name} has weight 0. {route.now} Next: `start VERSION PERCENT`."
    )


def _in_flight_already(route: Route) -> Refuse:
    if not route.stable.weight:
        why = f"Everything goes to {route.canary.name}, as after a change-over by hand: `promote` makes its version the stable one"
        return Refuse(f"{why}. {route.now} Next: `promote` or `rollback`.")
    return Refuse(
        f"A canary is in flight, and a second one would replace it. {route.now} Next: `promote` or `rollback`."
    )


def _somebody_else(route: Route) -> Refuse:
    return Refuse(f"Somebody else changed {route.name} or a service behind it meanwhile. {route.now} Next: `status`.")


def _move(backend: Backend, version: str) -> Patch:
    assert backend.env is not None
    return Patch(f"inferenceservice/{backend.service}", version_moves(backend.env, backend.version, version))


def _weights(route: Route, percent: int) -> Patch:
    at = f"/spec/rules/{route.rule}/backendRefs"
    tests: list[Operation] = []
    for index, each in enumerate((route.stable, route.canary)):
        tests.append({"op": "test", "path": f"{at}/{index}/name", "value": each.name})
        tests.append({"op": "test", "path": f"{at}/{index}/weight", "value": each.weight})
    moved: list[Operation] = [
        {"op": "replace", "path": f"{at}/{index}/weight", "value": weight}
        for index, weight in ((0, 100 - percent), (1, percent))
    ]
    return Patch(f"httproute/{route.name}", (*tests, *moved))


def _written(stable: Backend) -> str:
    return (
        f'Version {stable.version} is the stable one. Write MODEL_VERSION "{stable.version}" into the manifest of {stable.service}, and '
        "weights 100 and 0 into the route's: the next apply would otherwise undo this."
    )
