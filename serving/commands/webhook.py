"""`headway webhook`: makes MLflow tell a server at once what it would find out at its next poll."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.commands.base import CommandFailed, Verb, registry_flags, registry_settings, say
from serving.commands.table import table
from serving.settings import Settings, SettingsError

if TYPE_CHECKING:
    from registry.webhooks import Webhooks

ROUTE = "/webhooks/mlflow"
NAME = "headway"
LATER = """\
What to know of MLflow's webhooks:
- a running MLflow server may take up to 60 s to see a new one (MLFLOW_WEBHOOK_CACHE_TTL);
- it must have a fixed MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY, or it cannot read the secret after a restart;
- stages have no event, and a delivery may get lost: the server goes on polling."""

Action = Callable[[argparse.Namespace, Settings, "Webhooks"], int]


def run(args: argparse.Namespace) -> int:
    """Runs one of the actions. Raises SettingsError, CommandFailed, or what the registry raises."""
    settings = registry_settings(args)
    from registry.webhooks import Webhooks

    action: Action = args.action
    return action(args, settings, Webhooks(settings.registry.tracking_uri, settings.registry.registry_uri))


def _register(args: argparse.Namespace, settings: Settings, webhooks: Webhooks) -> int:
    secret = settings.registry.webhook_secret
    if secret is None:
        raise SettingsError("there is no secret: set HEADWAY_REGISTRY__WEBHOOK_SECRET, here and at headway serve")
    if not args.url.endswith(ROUTE):
        say(f"note: headway serve takes deliveries at {ROUTE}, and this URL ends otherwise")
    webhook, new = webhooks.register(args.name, args.url, secret.get_secret_value())
    print(f"{webhook.name} {'registered' if new else 'updated'}: {webhook.url}, {len(webhook.events)} events")
    say(LATER)
    return 0


def _list(args: argparse.Namespace, settings: Settings, webhooks: Webhooks) -> int:
    rows = [(w.name, w.id, w.status, w.url, ", ".join(w.events)) for w in webhooks.list()]
    if rows:
        print(table(("NAME", "ID", "STATUS", "URL", "EVENTS"), rows))
    else:
        say("the MLflow server has no webhooks")
    return 0


def _test(args: argparse.Namespace, settings: Settings, webhooks: Webhooks) -> int:
    say("MLflow delivers an example …")
    delivered = webhooks.test(args.name)
    if not delivered.ok:
        answered = "nobody answered" if delivered.status is None else f"the answer was {delivered.status}"
        raise CommandFailed(f"the delivery failed: {answered}: {delivered.text[:300]}")
    print(f"{args.name}: delivered, answered {delivered.status} {delivered.text[:300]}")
    return 0


def _remove(args: argparse.Namespace, settings: Settings, webhooks: Webhooks) -> int:
    webhook = webhooks.remove(args.name)
    print(f"{webhook.name} removed: {webhook.url}")
    return 0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Four actions; all but `list` name a webhook."""
    actions = parser.add_subparsers(dest="what", required=True, metavar="ACTION")
    known: tuple[tuple[str, str, Action], ...] = (
        ("register", "make MLflow deliver to this URL, signed with HEADWAY_REGISTRY__WEBHOOK_SECRET", _register),
        ("list", "show all webhooks of the MLflow server", _list),
        ("test", "let MLflow deliver an example now, and show the answer", _test),
        ("remove", "delete a webhook", _remove),
    )
    for name, help, action in known:
        own = actions.add_parser(name, help=help, description=help, allow_abbrev=False)
        own.set_defaults(action=action)
        registry_flags(own)
        if name == "register":
            own.add_argument("--url", required=True, help=f"https://headway.example{ROUTE}, as MLflow's server sees it")
        if name != "list":
            own.add_argument(
                "--name", default=NAME, help=f"the webhook's name; test and remove take an id too ({NAME})"
            )


VERB = Verb("webhook", "register, list, test and remove the MLflow webhook that wakes a server", add_flags, run)
