"""The one decision: a version's own library, or a program that was proved to answer the same."""

from __future__ import annotations

import logging

from serving.runtimes.accelerated.parity import Parity, prove
from serving.runtimes.accelerated.program import NotAccelerated, NotCompiled
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
        fast, parity = proved(native, schema, example, seconds)
    except NotAccelerated as why:
        native.engine = Engine(native.engine.name, str(why))
        return native
    log.debug("proved", extra={"rows": parity.rows, "at_thresholds": parity.at_thresholds})
    return fast


def proved(
    native: SklearnRuntime, schema: InputSchema, example: tuple, seconds: float = CHECK_SECONDS
) -> tuple[AcceleratedRuntime, Parity]:
    """The faster runtime, and what was compared. Raises NotAccelerated, whatever goes wrong."""
    try:
        fast = compiled(native, schema)
        return fast, prove(native, fast, schema, example, seconds)
    except NotAccelerated:
        raise
    except Exception as error:
        # The boundary to libraries' private attributes and routines: what another release of theirs makes of them may
        # fail in any way, and the model's own library can serve it all the same.
        log.exception("compiling stumbled")
        raise NotCompiled(f"compiling raised {type(error).__name__}") from error
