"""The one decision: a version's own library, or a program that was proved to answer the same."""

from __future__ import annotations

import logging

from serving.runtimes.accelerated.parity import NotProved, prove
from serving.runtimes.accelerated.program import NotCompiled
from serving.runtimes.accelerated.runtime import AcceleratedRuntime, compiled
from serving.runtimes.base import Engine
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import InputSchema

log = logging.getLogger("headway.accelerate")
#: Bound for the check of one version. Hundredths are usual; trees take a second more.
CHECK_SECONDS = 10.0


def accelerated(
    native: SklearnRuntime, schema: InputSchema, example: tuple, seconds: float = CHECK_SECONDS
) -> AcceleratedRuntime | SklearnRuntime:
    """The faster runtime if it was proved, else `native`, whose engine then says why. Never raises: it is a courtesy."""
    try:
        fast = compiled(native, schema)
        parity = prove(native, fast, schema, example, seconds)
    except (NotCompiled, NotProved) as error:
        why = str(error)
    except Exception as error:
        log.exception("compiling stumbled")
        why = f"compiling raised {type(error).__name__}"
    else:
        log.debug("proved", extra={"rows": parity.rows, "at_thresholds": parity.at_thresholds})
        return fast
    native.engine = Engine(native.engine.name, why)
    return native
