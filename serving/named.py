"""What a number or a label in a request's path means: asked of the registry, seldom, and remembered for a while.

Whoever asks for random numbers costs the registry at most `RATE` questions per second, for all models together.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable

from cachetools import LRUCache, TTLCache

from registry.errors import RegistryUnavailable, VersionNotFound
from registry.policies import FollowAlias, Pinned
from registry.versions import ModelVersion
from serving.bucket import TokenBucket
from serving.errors import NotFound, NotLoadedYet, NotReady
from serving.poller import VersionSource
from serving.schema import shown
from serving.threads import in_thread

RATE, BURST = 5.0, 20
KEEP_SECONDS, MOST_KEPT = 10.0, 4096
_NUMBER, _ALIAS = re.compile(r"[1-9][0-9]{0,8}"), re.compile(r"[A-Za-z0-9_.-]{1,256}")

Named = Pinned | FollowAlias


class Finder:
    """Finds versions by number or alias. Lives on the event loop."""

    def __init__(
        self,
        source: VersionSource,
        keep_seconds: float = KEEP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        rate: float = RATE,
    ) -> None:
        """An answer, "there is none" included, is good for `keep_seconds`. `rate` is questions per second."""
        self._source = source
        self._bucket = TokenBucket(rate, BURST, clock)
        self._fresh: TTLCache[Named, ModelVersion | None] = TTLCache(MOST_KEPT, keep_seconds, clock)
        self._last: LRUCache[Named, ModelVersion] = LRUCache(MOST_KEPT)
        self._asking: dict[Named, asyncio.Task[ModelVersion | None]] = {}

    async def find(self, policy: Named) -> ModelVersion:
        """The version that a number or an alias means now. While the registry does not answer, what it said last.

        Raises NotFound if there is none, NotLoadedYet if the registry is asked too much, NotReady if it does not answer.
        """
        found = self._fresh[policy] if policy in self._fresh else await asyncio.shield(self._ask(policy))
        if found is None:
            raise _unknown(policy)
        return found

    def known(self, policy: Named) -> ModelVersion | None:
        """What `find` would return at once, or None."""
        return self._fresh.get(policy)

    def _ask(self, policy: Named) -> asyncio.Task[ModelVersion | None]:
        """One question at a time about the same thing, whoever wants to know."""
        asking = self._asking.get(policy)
        if asking is None:
            if not _plausible(policy):
                raise _unknown(policy)
            wait = self._bucket.take()
            if wait > 0:
                raise NotLoadedYet("The registry is being asked for too many versions; ask again.", math.ceil(wait))
            asking = self._asking[policy] = asyncio.create_task(self._answer(policy))
            asking.add_done_callback(lambda task: self._asked(policy, task))
        return asking

    def _asked(self, policy: Named, task: asyncio.Task[ModelVersion | None]) -> None:
        del self._asking[policy]
        if not task.cancelled():
            task.exception()  # those who waited have heard of it; there may be nobody left

    async def _answer(self, policy: Named) -> ModelVersion | None:
        try:
            found = policy.aspire(await in_thread(lambda: self._source.catalogue(policy)))
        except VersionNotFound:
            found = ()
        except RegistryUnavailable as error:
            if policy not in self._last:
                raise NotReady(f"It is not known what that means: {error}.") from error
            found = (self._last[policy],)
        answer = self._fresh[policy] = found[0] if found else None
        if answer is None:
            self._last.pop(policy, None)
        else:
            self._last[policy] = answer
        return answer


def _plausible(policy: Named) -> bool:
    """Whether it could be registered at all: what could not need not be asked for."""
    if isinstance(policy, Pinned):
        return bool(policy.name and _NUMBER.fullmatch(policy.version))
    return bool(policy.name and _ALIAS.fullmatch(policy.alias))


def _unknown(policy: Named) -> NotFound:
    what = f"version {shown(policy.version)!r}" if isinstance(policy, Pinned) else f"label {shown(policy.alias)!r}"
    return NotFound(f"The model has no {what}.")
