"""`headway canary`: a canary on KServe, by the user's own kubectl."""

from __future__ import annotations

from serving.commands.base import Verb
from serving.rollout.command import HELP, flags, run

VERB = Verb("canary", HELP, flags, run)
