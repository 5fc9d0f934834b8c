"""A bound on what the registry may answer: MLflow's client reads an answer to its end, however long that is.

The client has no setting for it, so its HTTP adapter is replaced by one that counts. Files are streamed to disk by the
client, and are none of this.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import mlflow.utils.request_utils as client
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

#: A page of a thousand models with their descriptions has room.
MOST_BYTES = 32 * 2**20
_CHUNK = 64 * 2**10


class AnswerTooLong(requests.RequestException):
    """An answer of more than `MOST_BYTES`."""


class Counted:
    """The body of an answer, as `requests` reads it, up to a bound."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, amount: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """The body piece by piece. Raises AnswerTooLong, and hangs up then."""
        left = MOST_BYTES
        for piece in self._raw.stream(min(amount, _CHUNK), decode_content=decode_content):
            left -= len(piece)
            if left < 0:
                self._raw.close()
                raise AnswerTooLong(f"the answer is longer than {MOST_BYTES} bytes")
            yield piece


class Hasty(Retry):
    """urllib3 reads an answer that it is going to ask for again to its end, to use the connection again: it hangs up."""

    def increment(
        self, method: str | None = None, url: str | None = None, response: Any = None, *args: Any, **kwargs: Any
    ) -> Hasty:
        """One try fewer. Raises MaxRetryError when none is left."""
        if response is not None:
            response.close()
        return super().increment(method, url, response, *args, **kwargs)


class Counting(client.TCPKeepAliveHTTPAdapter):  # type: ignore[misc]  # mlflow's types are not followed
    """MLflow's adapter, with answers counted."""

    def send(self, request: requests.PreparedRequest, stream: bool = False, **kwargs: Any) -> requests.Response:
        """The answer; its body is read by whoever asked."""
        answer: requests.Response = super().send(request, stream=stream, **kwargs)
        if not stream or answer.status_code >= 400:  # the client reads the text of an error, too
            answer.raw = Counted(answer.raw)
        return answer


def bound_answers() -> None:
    """Has MLflow's client use it. Before its first call: sessions are kept."""
    assert issubclass(client.TCPKeepAliveHTTPAdapter, HTTPAdapter)
    client.TCPKeepAliveHTTPAdapter, client.Retry = Counting, Hasty
