"""MLflow's own webhooks: one of ours, with the events that can change what is served.

Refusals of MLflow are explained by what its server would have to allow.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow.entities.webhook import Webhook as MlflowWebhook
from mlflow.tracking import MlflowClient

from registry.client import asking, connect
from registry.errors import RegistryRefused, RegistryUnavailable, VersionNotFound

#: What can change what a reference means, or how a version is served. Moving an alias is `created`; stages have none.
EVENTS = (
    "model_version_alias.created",
    "model_version_alias.deleted",
    "model_version_tag.set",
    "model_version_tag.deleted",
    "model_version.created",
)
#: A fragment of MLflow's refusal, and what to do about it.
EXPLANATIONS = (
    (
        "URL scheme",
        "the MLflow server delivers over https only; give an https URL, or start that server with "
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https",
    ),
    (
        "non-public IP",
        "the MLflow server delivers to public addresses only; to let it reach this one, start it with "
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true (which lets every webhook reach its network)",
    ),
    ("Cannot resolve", "the MLflow server cannot resolve the URL's host; it needs a name that is known over there"),
)
BROKEN = (
    "the MLflow server answers 500 about webhooks: either it stores its registry in files, which have none, or it "
    "cannot read the secret of a webhook that it stored before it was restarted; give it one fixed "
    "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY (its log says which)"
)


@dataclass(frozen=True, slots=True)
class Webhook:
    """One webhook of the MLflow server; it never tells its secret."""

    id: str
    name: str
    url: str
    events: tuple[str, ...]
    status: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """What became of a test delivery. `status` is None if nobody answered."""

    ok: bool
    status: int | None
    text: str


class Webhooks:
    """Reads and writes the webhooks of one MLflow server. Methods block.

    All raise RegistryUnavailable, RegistryRefused when MLflow will not, and VersionNotFound for a webhook that is not
    there.
    """

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        self._client: MlflowClient = connect(tracking_uri, registry_uri)

    def register(self, name: str, url: str, secret: str) -> tuple[Webhook, bool]:
        """Makes the webhook of this name, or gives the one that exists this URL, secret and our events.

        Returns it, and whether it is new.
        """
        old = next((webhook for webhook in self.list() if webhook.name == name), None)
        with _explained():
            if old is None:
                return _ours(self._client.create_webhook(name, url, list(EVENTS), secret=secret)), True
            changed = self._client.update_webhook(old.id, url=url, events=list(EVENTS), secret=secret, status="ACTIVE")
            return _ours(changed), False

    def list(self) -> tuple[Webhook, ...]:
        """All webhooks of the server, whoever made them."""
        found: list[MlflowWebhook] = []
        with _explained():
            page = self._client.list_webhooks(max_results=100)
            found += page
            while page.token:
                page = self._client.list_webhooks(max_results=100, page_token=page.token)
                found += page
        return tuple(_ours(webhook) for webhook in found)

    def test(self, name: str) -> Delivered:
        """Lets the server deliver an example event, about a model that is not there, and says what it was answered."""
        webhook = self._named(name)
        with _explained():
            result = self._client.test_webhook(webhook.id)
        return Delivered(result.success, result.response_status, result.response_body or result.error_message or "")

    def remove(self, name: str) -> Webhook:
        """Deletes the webhook of this name or id, and returns what it was."""
        webhook = self._named(name)
        with _explained():
            self._client.delete_webhook(webhook.id)
        return webhook

    def _named(self, name: str) -> Webhook:
        found = [webhook for webhook in self.list() if name in (webhook.name, webhook.id)]
        if not found:
            raise VersionNotFound(f"the MLflow server has no webhook {name!r}")
        if len(found) > 1:
            raise RegistryRefused(f"{len(found)} webhooks are called {name!r}: give the id (headway webhook list)")
        return found[0]


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        with asking("the webhook"):
            yield
    except RegistryRefused as error:
        text = next((words for fragment, words in EXPLANATIONS if fragment in str(error)), str(error))
        raise RegistryRefused(text) from error
    except RegistryUnavailable as error:
        if "500" not in str(error) and not isinstance(error.__cause__, NotImplementedError):
            raise
        raise RegistryRefused(BROKEN) from error


def _ours(webhook: MlflowWebhook) -> Webhook:
    events = tuple(str(event) for event in webhook.events)
    return Webhook(webhook.webhook_id, webhook.name, webhook.url, events, str(webhook.status))
