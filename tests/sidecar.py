"""A program that behaves as the batcher in KServe's agent sidecar does (0.20), down to the bodies and the headers.

python -m tests.sidecar --target 127.0.0.1:8080 --port 9081 --max-batchsize 32 --max-latency 5000

The agent looks at its window every 100 microseconds; here the loop wakes when the agent would find something, and not in
between, which is the same to whoever looks from outside and leaves the processor to others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import uvicorn

TEXT = [(b"content-type", b"text/plain; charset=utf-8")]
MISMATCH = "size of prediction is not equal to the size of instances"
TICK = 100e-6
#: Hop by hop, or made anew by the client that forwards.
OWN = {b"host", b"content-length", b"connection", b"transfer-encoding"}


class Refused(Exception):
    """A body that the batcher answers with 400 and a line of text."""


@dataclass
class Waiting:
    """One client's rows, and the answer that it waits for."""

    path: str
    instances: list[Any]
    answer: asyncio.Future[dict[str, Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """One loop: takes requests one by one, and while a batch is on its way it takes none."""

    def __init__(self, upstream: Upstream, most: int, milliseconds: int) -> None:
        self._upstream, self._most, self._milliseconds = upstream, most, milliseconds
        self._arriving: asyncio.Queue[Waiting] = asyncio.Queue()  # who stands in it has not been looked at yet

    async def ask(self, path: str, body: bytes) -> dict[str, Any]:
        """The client's part of a batch's answer; nobody notices if the client is gone by then. Raises Refused."""
        waiting = Waiting(path, instances_of(body))
        self._arriving.put_nowait(waiting)
        return await waiting.answer

    async def run(self) -> None:
        """Fills and sends batches, one after the other, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._arriving.get()]
            until = loop.time() + self._milliseconds / 1000 + TICK
            while sum(len(one.instances) for one in batch) < self._most and loop.time() < until:
                try:
                    batch.append(await asyncio.wait_for(self._arriving.get(), until - loop.time()))
                except TimeoutError:
                    break
            await self._send(batch)

    async def _send(self, batch: list[Waiting]) -> None:
        """All rows in one body, to the path of the last request; no header of any client goes along."""
        rows = [row for one in batch for row in one.instances]
        body = dumps({"instances": rows}).encode()
        headers = {"host": "example.com", "x-forwarded-for": "192.0.2.1", "accept-encoding": "gzip"}
        status, _, answered = await self._upstream.ask("POST", batch[-1].path, headers, body)
        message, batch_id, predictions = _judge(status, answered, len(rows))
        at = 0
        for one in batch:
            own = None if predictions is None else predictions[at : at + len(one.instances)]
            at += len(one.instances)
            if not one.answer.done():
                one.answer.set_result({"message": message, "batchId": batch_id, "predictions": own})


def _judge(status: int, body: bytes, rows: int) -> tuple[str, str, list[Any] | None]:
    """Message, id and predictions of a batch, from what the model server answered."""
    if status != 200:
        return body.decode(errors="replace"), "", None
    batch_id = str(uuid.uuid4())
    try:
        predictions = loads(body).get("predictions")
    except (ValueError, AttributeError) as error:
        return str(error), batch_id, None
    if not isinstance(predictions, list) or len(predictions) != rows:
        return MISMATCH, batch_id, None
    return "", batch_id, predictions


def instances_of(body: bytes) -> list[Any]:
    """The rows of a body; every other key is forgotten. Raises Refused."""
    try:
        document = loads(body)
    except ValueError:
        raise Refused("can't Unmarshal body") from None
    if not isinstance(document, dict | None):
        raise Refused("can't Unmarshal body")
    rows = {key.lower(): value for key, value in (document or {}).items()}.get("instances")
    if not isinstance(rows, list | None):
        raise Refused("can't Unmarshal body")
    if not rows:
        raise Refused("no instances in the request")
    return rows


def loads(body: bytes) -> Any:
    """JSON as Go reads it into `interface{}`: every number is a float64."""
    return json.loads(body, parse_int=float, parse_constant=_no_constant)


def _no_constant(word: str) -> Any:
    raise ValueError(f"invalid character {word[0]!r} looking for beginning of value")


def dumps(document: Any) -> str:
    """JSON as Go writes it: keys sorted, and a float without a fraction as an integer."""
    return json.dumps(_whole(document), separators=(",", ":"), sort_keys=True, ensure_ascii=False)


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _whole(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e21 else value


class Upstream:
    """The model server behind, over kept connections."""

    def __init__(self, target: str) -> None:
        self._base = f"http://{target}"
        silent = ("User-Agent", "Accept", "Content-Type", "Accept-Encoding")
        self._session = aiohttp.ClientSession(skip_auto_headers=silent, auto_decompress=False)

    async def ask(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and body; 502 and nothing if the server cannot be reached."""
        try:
            async with self._session.request(method, self._base + path, headers=headers, data=body) as answer:
                return answer.status, answer.raw_headers, await answer.read()
        except aiohttp.ClientError:
            return 502, [], b""


class App:
    """What listens: batches paths that end in `:predict`, and forwards everything else as it is."""

    def __init__(self, target: str, most: int, milliseconds: int) -> None:
        self._settings = target, most, milliseconds
        self._batcher: Batcher | None = None

    async def __call__(self, scope: Any, receive: Callable[[], Awaitable[Any]], send: Any) -> None:
        if self._batcher is None:
            target, most, milliseconds = self._settings
            self._upstream = Upstream(target)
            self._batcher = Batcher(self._upstream, most, milliseconds)
            self._running = asyncio.create_task(self._batcher.run())
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        status, headers, answer = await self._answer(scope, body)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _answer(self, scope: Any, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        assert self._batcher is not None
        if not re.search(r":predict$", scope["path"]):
            return await self._forward(scope, body)
        try:
            found = await self._batcher.ask(scope["path"], body)
        except Refused as error:
            return 400, [*TEXT, (b"x-content-type-options", b"nosniff")], f"{error}\n".encode()
        answer = {"message": found["message"], "batchId": found["batchId"]}
        text = json.dumps(answer, separators=(",", ":"))[:-1] + f',"predictions":{dumps(found["predictions"])}}}'
        return 200, TEXT, text.encode()

    async def _forward(self, scope: Any, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        sent = {key.decode(): value.decode() for key, value in scope["headers"] if key not in OWN}
        query = f"?{scope['query_string'].decode()}" if scope["query_string"] else ""
        path = scope["raw_path"].decode() + query
        status, headers, answer = await self._upstream.ask(
            scope["method"], path, {**sent, "x-forwarded-for": scope["client"][0]}, body
        )
        return status, [(k.lower(), v) for k, v in headers if k.lower() not in OWN], answer


def main() -> None:
    flags = argparse.ArgumentParser()
    flags.add_argument("--target", required=True)
    flags.add_argument("--port", type=int, default=9081)
    flags.add_argument("--max-batchsize", type=int, default=32)
    flags.add_argument("--max-latency", type=int, default=5000, help="milliseconds")
    args = flags.parse_args()
    if args.max_batchsize <= 0 or args.max_latency <= 0:
        raise SystemExit(1)
    app = App(args.target, args.max_batchsize, args.max_latency)
    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="warning", lifespan="off", date_header=True)


if __name__ == "__main__":
    main()
