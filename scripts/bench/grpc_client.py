"""A closed loop of gRPC calls: python -m scripts.bench.grpc_client PORT BODY_FILE CALLS SECONDS METHOD

`CALLS` are in flight over one channel, each sent again as soon as it is answered. It is Python, on a core of its own:
where its share of that core is near 1, it is the limit, not the server. Prints JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import grpc.aio
import uvloop

from scripts.bench.figures import quantile


async def loop(call: grpc.aio.UnaryUnaryMultiCallable, body: bytes, end: float, taken: list[float]) -> int:
    """One call after the other until the end; returns how many failed."""
    failed = 0
    while (began := time.perf_counter()) < end:
        try:
            await call(body, timeout=60)
            taken.append(time.perf_counter() - began)
        except grpc.aio.AioRpcError:
            failed += 1
    return failed


async def run(port: int, method: str, body: bytes, calls: int, seconds: float) -> dict[str, float]:
    """The measurement."""
    taken: list[float] = []
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(method)
        await call(body, timeout=60)
        began, cpu = time.perf_counter(), time.process_time()
        failed = await asyncio.gather(*(loop(call, body, began + seconds, taken) for _ in range(calls)))
        lasted, cpu = time.perf_counter() - began, time.process_time() - cpu
    ordered = sorted(taken) or [0.0]
    latencies = {f"p{share}": 1000 * quantile(ordered, share / 100) for share in (50, 95, 99)}
    return {"answers": len(taken), "seconds": lasted, "errors": sum(failed), "load": cpu / lasted, **latencies}


def main() -> None:
    """Prints one measurement."""
    port, body, calls, seconds, method = sys.argv[1:6]
    print(json.dumps(uvloop.run(run(int(port), method, Path(body).read_bytes(), int(calls), float(seconds)))))


if __name__ == "__main__":
    main()
