"""The verbs of a canary: observes, decides, acts, and says what it does, until what was asked for is so."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.rollout import knative, route
from serving.rollout.backends import NoSplit
from serving.rollout.decisions import Decision, Done, Patch, Refuse, Wait
from serving.rollout.kubectl import Cluster, ClusterError, Rejected

POLL_SECONDS = 1.0
#: While nothing changes, a line says so this often.
REMIND_SECONDS = 15.0
#: A cluster that does not answer is asked again for so long.
PATIENCE_SECONDS = 60.0
Said = Callable[[str], None]


class Moving(Protocol):
    """What a `Driver` drives: a canary, or a deployment that is waited for."""

    @property
    def cluster(self) -> Any:
        """Who is patched, and says why pods are not ready."""
        ...

    def observe(self) -> Any:
        """What there is now; its `now` is a sentence. Raises ClusterError or NoSplit."""
        ...

    def decide(self, words: Sequence[str], seen: Any, *, begun: bool) -> Decision:
        """What follows."""
        ...


@dataclass(frozen=True, slots=True)
class Canary:
    """One service, or one route, and the words that were said of it."""

    cluster: Cluster
    service: str
    route: str | None = None

    def observe(self) -> Any:
        """What there is now. Raises ClusterError or NoSplit."""
        return self.cluster.service(self.service) if self.route is None else self.cluster.route(self.route)

    def decide(self, words: Sequence[str], seen: Any, *, begun: bool) -> Decision:
        """What follows for `start VERSION PERCENT`, `widen PERCENT`, `promote` or `rollback [VERSION]`."""
        verbs: Any = knative if self.route is None else route
        match list(words):
            case ["start", version, percent]:
                return verbs.start(seen, version, int(percent), begun=begun)  # type: ignore[no-any-return]
            case ["widen", percent]:
                return verbs.widen(seen, int(percent), begun=begun)  # type: ignore[no-any-return]
            case ["promote"]:
                return verbs.promote(seen, begun=begun)  # type: ignore[no-any-return]
            case ["rollback", *version]:
                return verbs.roll_back(seen, version[0] if version else None, begun=begun)  # type: ignore[no-any-return]
        raise ValueError(words)


class Failed(Exception):
    """The command came to no good end; the text says how things stand and what to type."""


@dataclass
class Driver:
    """Runs one command. `show` gives the text of a patch; `out` takes commands, `err` progress and the result."""

    canary: Moving
    show: Callable[[Patch], str]
    out: Said
    err: Said
    timeout: float = 600.0
    dry_run: bool = False
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    elsewise: str = ", or `status`"

    def run(self, words: list[str]) -> None:
        """Until it is done. Raises Failed; a patch that was made stays."""
        begun, waited = False, _Waiting(self)
        while True:
            seen = self._look(waited)
            decision = self.canary.decide(words, seen, begun=begun)
            match decision:
                case Done(what):
                    return self.err(what)
                case Refuse(why):
                    raise Failed(why)
                case Wait():
                    waited.on(decision, seen, words)
                case Patch():
                    self._act(decision, seen, begun=begun)
                    if self.dry_run:
                        return self.err(
                            "# that would be the first change; what follows depends on what the cluster makes of it"
                        )
                    begun, waited = True, _Waiting(self, words)

    def _look(self, waited: _Waiting) -> Any:
        """What there is. An answer that does not come is waited for once the command has begun to wait."""
        while True:
            try:
                return self.canary.observe()
            except NoSplit as error:
                raise Failed(str(error)) from error
            except ClusterError as error:
                waited.without_answer(error)

    def _act(self, patch: Patch, seen: Any, *, begun: bool) -> None:
        self.out(f"+ {self.show(patch)}")
        if self.dry_run:
            return
        try:
            self.canary.cluster.patch(patch)
        except Rejected as error:
            sofar = "Some changes were made before it. " if begun else ""
            why = f"The change was refused, and nothing of it was made: {error}. {sofar}Before it: {seen.now}"
            raise Failed(f"{why} If somebody else was faster, look at `status` and type the command again.") from error
        except ClusterError as error:
            why = f"{error.args[0].rstrip('.')}. Whether the change was made is not known. Before it: {seen.now}"
            raise Failed(f"{why} Next: `status`, or the same command again.") from error


class _Waiting:
    """One wait, from a change of ours to the next: it has a bound, and tells what it is about."""

    def __init__(self, driver: Driver, changed_by: Sequence[str] = ()) -> None:
        self._driver, self._changed_by = driver, changed_by
        self._began = driver.clock()
        self._said, self._at = "", self._began
        self._silent: float | None = None

    def on(self, wait: Wait, seen: Any, words: list[str]) -> None:
        """Says what is waited for, when that changes and now and then, and sleeps. Raises Failed when it was too long."""
        driver = self._driver
        self._silent, now = None, driver.clock()
        waited = now - self._began
        if waited >= driver.timeout:
            raise Failed(self._over(wait, seen, words))
        if wait.until != self._said:
            driver.err(f"# waits until {wait.until}")
        elif now - self._at >= REMIND_SECONDS:
            driver.err(f"# {waited:.0f} s: until {wait.until}{self._why(wait)}")
        else:
            return driver.sleep(POLL_SECONDS)
        self._said, self._at = wait.until, now
        return driver.sleep(POLL_SECONDS)

    def without_answer(self, error: ClusterError) -> None:
        """The cluster did not answer: that is endured for a while, if it answered before."""
        driver = self._driver
        now = driver.clock()
        if not (self._said or self._changed_by):
            raise Failed(str(error)) from error
        if now - (now if self._silent is None else self._silent) >= min(PATIENCE_SECONDS, driver.timeout):
            made = "What was changed stays" if self._changed_by else "Nothing was changed since it answered"
            raise Failed(
                f"{str(error).rstrip('.')}. {made}. Next: the same command again, when the cluster answers."
            ) from error
        if self._silent is None:
            self._silent = now
            driver.err(f"# the cluster does not answer: {error}")
        driver.sleep(POLL_SECONDS)

    def _over(self, wait: Wait, seen: Any, words: list[str]) -> str:
        again = f"Next: `{' '.join(words)}` again when that is mended{self._driver.elsewise}."
        return f"Waited in vain for {self._driver.timeout:g} seconds until {wait.until}{self._why(wait)}. {seen.now} {again}"

    def _why(self, wait: Wait) -> str:
        said = self._driver.canary.cluster.why(wait.pods) if wait.pods else ""
        return f" ({said})" if said else ""
