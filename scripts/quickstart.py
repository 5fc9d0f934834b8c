"""The main job on embedded stores: train and register, materialise features, serve the champion, call it over three
protocols by features and by `machine_id`, promote the challenger under load, push a reading, and compute a feature
from what the request brings.

Everything it makes lies in `.quickstart/`; a second run trains nothing again. Run it as `scripts/quickstart.sh`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import requests

from scripts.load import Load

HOME = Path(".quickstart")
FEAST = str(HOME / "feast")
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]


class Failed(SystemExit):
    """Ends the quickstart with one clear sentence and exit code 1."""

    def __init__(self, sentence: str) -> None:
        print(f"quickstart: {sentence}", file=sys.stderr)
        super().__init__(1)


def main() -> None:
    """Runs the whole demonstration."""
    args = _arguments()
    for name in ("port", "grpc_port", "mlflow_port"):
        _require_free(getattr(args, name), name)
    HOME.mkdir(exist_ok=True)
    # A cut-off run must not leave its children behind: both ways of being stopped unwind the context managers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tracking = f"http://127.0.0.1:{args.mlflow_port}"
    with contextlib.ExitStack() as stack:
        stack.enter_context(_mlflow_server(args.mlflow_port))
        _train_once(tracking)
        _set_champion(tracking, "1")
        _tag_service(tracking, "machine_health")
        stack.enter_context(_headway(args, tracking))
        base = f"http://127.0.0.1:{args.port}"
        _await_ready(base)
        _call_by_features(base, args.grpc_port)
        _call_by_machine(base, args.grpc_port)
        _promote_under_load(base, tracking, args.seconds)
        _push_a_reading(base)
        _compute_on_demand(base, tracking)
        if not args.once:
            _keep_serving(base, tracking, args.grpc_port)
    _step("everything stopped")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/quickstart.sh", description=__doc__)
    parser.add_argument("--once", action="store_true", help="exit 0 after the check, with everything stopped")
    parser.add_argument("--port", type=int, default=8080, help="Headway's HTTP port (8080)")
    parser.add_argument("--grpc-port", type=int, default=8081, help="Headway's gRPC port (8081)")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="MLflow's port (5000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="load before and after the promotion (2)")
    return parser.parse_args()


def _step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def _require_free(port: int, name: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            flag = "--" + name.replace("_", "-")
            raise Failed(f"port {port} is in use; stop what listens there, or choose another with {flag}.") from None


@contextlib.contextmanager
def _process(
    command: list[str], log: str, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command with its output in a log file, and stops it (SIGTERM, then SIGKILL) at the end."""
    with (HOME / log).open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environ or {})}, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(40)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def _mlflow_server(port: int) -> Iterator[None]:
    _step(f"MLflow tracking server on SQLite: http://127.0.0.1:{port}")
    home = HOME.resolve()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", f"{home}/artifacts",
    ]  # fmt: skip
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with _process(command, "mlflow.log", quiet) as process:
        _await(f"http://127.0.0.1:{port}/health", process, "MLflow", "mlflow.log")
        yield


def _await(url: str, process: subprocess.Popen[bytes], who: str, log: str, seconds: float = 90) -> None:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        if process.poll() is not None:
            raise Failed(f"{who} ended with exit code {process.returncode}; see {HOME / log}.")
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=2).status_code == 200:
                print(f"   up after {time.monotonic() - began:.1f} s", flush=True)
                return
        time.sleep(0.2)
    raise Failed(f"{who} did not answer within {seconds:g} seconds; see {HOME / log}.")


def _train_once(tracking: str) -> None:
    stamp = HOME / "trained"
    if stamp.exists():
        _step("models are trained and registered already")
        return
    _step("training, registering, materialising features (once; the log is .quickstart/train.log)")
    with (HOME / "train.log").open("wb") as log:
        command = [sys.executable, "-m", "scripts.demo.train", "--tracking-uri", tracking, "--feature-repo", FEAST]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("   "):
                print(line.rstrip(), flush=True)
        if process.wait() != 0:
            raise Failed(f"training failed; see {HOME / 'train.log'}.")
    stamp.touch()


def _set_champion(tracking: str, version: str) -> None:
    """Moves the alias the way a team would: in MLflow, over its REST interface."""
    body = {"name": MODEL, "alias": "champion", "version": version}
    requests.post(f"{tracking}/api/2.0/mlflow/registered-models/alias", json=body, timeout=10).raise_for_status()


@contextlib.contextmanager
def _headway(args: argparse.Namespace, tracking: str) -> Iterator[None]:
    uri = f"models:/{MODEL}@champion"
    flags = ["--model-uri", uri, "--host", "127.0.0.1", "--port", str(args.port), "--grpc-port", str(args.grpc_port)]
    _step(f"headway serve {' '.join(flags)}")
    environ = {
        "MLFLOW_TRACKING_URI": tracking,
        "HEADWAY_REGISTRY__POLL_SECONDS": "1",
        "HEADWAY_REGISTRY__CACHE_DIR": str(HOME / "cache"),
        "HEADWAY_FEATURES__REPO_PATH": FEAST,
    }
    with _process([sys.executable, "-m", "serving.cli", "serve", *flags], "headway.log", environ) as process:
        _await(f"http://127.0.0.1:{args.port}/health/live", process, "Headway", "headway.log")
        yield


def _await_ready(base: str) -> None:
    began = time.monotonic()
    while requests.get(f"{base}/ready", timeout=5).status_code != 200:
        if time.monotonic() - began > 90:
            why = requests.get(f"{base}/v1/models/{MODEL}", timeout=5).json().get("error")
            raise Failed(f"the model is not READY after 90 seconds: {why}")
        time.sleep(0.2)
    print(f"   READY after {time.monotonic() - began:.1f} s", flush=True)


def _show(answer: requests.Response) -> Any:
    if answer.status_code != 200:
        raise Failed(f"{answer.url} answered {answer.status_code}: {answer.text[:300]}")
    print("  ", json.dumps(answer.json()), flush=True)
    return answer.json()


def _call_by_features(base: str, grpc_port: int) -> None:
    _step("V1, V2 REST and V2 gRPC, by features")
    _show(requests.post(f"{base}/v1/models/{MODEL}:predict", json={"instances": [ROW]}, timeout=10))
    tensor = {"name": "x", "shape": [1, len(ROW)], "datatype": "FP64", "data": ROW}
    _show(requests.post(f"{base}/v2/models/{MODEL}/infer", json={"inputs": [tensor]}, timeout=10))
    asyncio.run(_call_grpc(grpc_port, "x", "FP64", [ROW]))


def _call_by_machine(base: str, grpc_port: int) -> None:
    _step("the same, by machine_id: Headway fetches the features from Feast")
    _show(requests.post(f"{base}/v1/models/{MODEL}:predict", json={"instances": [{"machine_id": 17}]}, timeout=10))
    tensor = {"name": "machine_id", "shape": [1], "datatype": "INT64", "data": [17]}
    _show(requests.post(f"{base}/v2/models/{MODEL}/infer", json={"inputs": [tensor]}, timeout=10))
    asyncio.run(_call_grpc(grpc_port, "machine_id", "INT64", [17]))


async def _call_grpc(port: int, name: str, datatype: str, data: list[Any]) -> None:
    """KServe's own client, unchanged."""
    from kserve import InferenceGRPCClient, InferInput, InferRequest  # parses sys.argv when imported: --help is ours

    array = np.array(data, dtype=np.float64 if datatype == "FP64" else np.int64)
    tensor = InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array)
    async with InferenceGRPCClient(f"127.0.0.1:{port}") as client:
        answer = await client.infer(InferRequest(MODEL, [tensor]))
    outputs = {output.name: output.as_numpy().tolist() for output in answer.outputs}
    print("   gRPC", json.dumps({"model_version": answer.model_version, **outputs}), flush=True)


def _promote_under_load(base: str, tracking: str, seconds: float) -> None:
    _step("promoting the challenger under load: the alias champion moves from version 1 to version 3 in MLflow")
    with Load(f"{base}/v1/models/{MODEL}:predict", {"instances": [ROW]}) as load:
        time.sleep(seconds)
        _set_champion(tracking, "3")
        end = time.monotonic() + 60
        while not load.tally.versions["3"] and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(seconds)
    versions = ", ".join(f"version {v} answered {n}" for v, n in sorted(load.tally.versions.items()))
    lost = load.tally.lost.total()
    print(f"   {load.tally.sent} requests at {load.rate:.0f} per second: {versions}; {lost} lost", flush=True)
    if lost:
        raise Failed(f"requests were lost: {dict(load.tally.lost)}")
    if set(load.tally.versions) != {"1", "3"}:
        raise Failed("the promotion was not seen; see .quickstart/headway.log")


def _risk(base: str, instance: Mapping[str, Any]) -> float:
    """The probability of a failure, by machine_id."""
    answer = requests.post(f"{base}/v1/models/{MODEL}:predict", json={"instances": [instance]}, timeout=10)
    return float(_show(answer)["probabilities"][0][1])


def _push_a_reading(base: str) -> None:
    _step("a push to Feast's online store changes machine 17's vibration, and with it the next prediction")
    risks = []
    for vibration in ("0.2", "1.4"):
        command = [sys.executable, "-m", "scripts.demo.features", "--feature-repo", FEAST, "--machine", "17"]
        with (HOME / "push.log").open("ab") as log:
            if subprocess.run([*command, "--vibration", vibration], stderr=log, check=False).returncode != 0:
                raise Failed(f"the push failed; see {HOME / 'push.log'}.")
        risks.append(_risk(base, {"machine_id": 17}))
    if risks[0] == risks[1]:
        raise Failed("the prediction did not change with the pushed reading.")


def _compute_on_demand(base: str, tracking: str) -> None:
    _step(
        "version 3 takes the feature service machine_live: the load is power_kw, from the request, by the rated power"
    )
    _tag_service(tracking, "machine_live")
    end = time.monotonic() + 60
    ask = {"instances": [{"machine_id": 17, "power_kw": 20.0}]}
    while requests.post(f"{base}/v1/models/{MODEL}:predict", json=ask, timeout=10).status_code != 200:
        if time.monotonic() > end:
            raise Failed("the changed tag was not seen; see .quickstart/headway.log")
        time.sleep(0.2)
    if _risk(base, {"machine_id": 17, "power_kw": 5.0}) == _risk(base, {"machine_id": 17, "power_kw": 36.0}):
        raise Failed("the prediction does not depend on the request's power.")


def _tag_service(tracking: str, service: str) -> None:
    body = {"name": MODEL, "version": "3", "key": "feast.feature_service", "value": service}
    requests.post(f"{tracking}/api/2.0/mlflow/model-versions/set-tag", json=body, timeout=10).raise_for_status()


def _keep_serving(base: str, tracking: str, grpc_port: int) -> None:
    _step("serving on; try, in another terminal")
    row, machine = json.dumps({"instances": [ROW]}), json.dumps({"instances": [{"machine_id": 17}]})
    print(f"   curl -s {base}/v1/models/{MODEL}")
    print(f"   curl -s {base}/v1/models/{MODEL}:predict -H 'content-type: application/json' -d '{row}'")
    print(f"   curl -s {base}/v1/models/{MODEL}:predict -H 'content-type: application/json' -d '{machine}'")
    print(f"   curl -s {base}/v2/models/{MODEL}")
    print(f"   curl -s {base}/metrics | grep model_predictions_total")
    print(f"   open {tracking}/#/models/{MODEL}, move the alias 'champion', and ask for the status again")
    print(f"   gRPC listens on 127.0.0.1:{grpc_port}; the server's log is {HOME}/headway.log")
    print("   Ctrl-C stops everything", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()


if __name__ == "__main__":
    main()
