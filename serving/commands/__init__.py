"""The verbs of the `headway` command, one module each. Adding a verb is a module and its line in `VERBS`.

A module imports only what parsing needs: kserve reads `sys.argv` when it is imported, and MLflow takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from serving.commands import accelerate, cache, canary, features, models, promote, serve, transform, verify, webhook
from serving.commands.base import Verb

VERBS: Sequence[Verb] = (
    serve.VERB,
    transform.VERB,
    models.VERB,
    promote.PROMOTE,
    promote.ROLLBACK,
    verify.VERB,
    accelerate.VERB,
    webhook.VERB,
    cache.VERB,
    features.VERB,
    canary.VERB,
)
