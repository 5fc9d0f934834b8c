"""What the server says of its models: status, metadata, index. Pure views of the managers."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from registry.mlmodel import Column, Signature, Tensor
from serving.lifecycle import State
from serving.manager import ASLEEP, ModelManager
from serving.paths import shown_reference, without_folders
from serving.runtimes.base import DATATYPES as TENSOR_DATATYPES
from serving.schema import tensor_name
from serving.servable import Servable

PLATFORM = "mlflow"
#: V2's datatypes of columns. Strings come first among those that share one: `BYTES` alone means a string.
DATATYPES = {
    "boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64",
    "string": "BYTES", "binary": "BYTES", "datetime": "BYTES",
}  # fmt: skip


def model_status(manager: ModelManager) -> dict[str, Any]:
    """The body of `GET /v1/models/{m}`: every key is always there, absent facts are null.

    `stale` is true while the registry does not answer; `problem` says why what is served is not what is aspired.
    """
    current = manager.current
    leading = current or next(reversed(manager.own), None)
    facts = current.version if current else None
    body: dict[str, Any] = {
        "name": manager.name,
        "version": facts.version if facts else None,
        "platform": PLATFORM,
        "ready": current is not None,
        "state": leading.state if leading else State.NEW,
        "uri": shown_reference(manager.uri),
        "aspired": [version.version for version in manager.aspired],
        "alias": _alias(manager, current),
        "stage": facts.stage if facts else None,
        "run_id": facts.run_id if facts else None,
        "digest": current.loaded.digest if current and current.loaded else None,
        "size_bytes": current.loaded.size if current and current.loaded else None,
        "engine": _engine(current) if current else None,
        "since": leading.since if leading else None,
        "stale": manager.stale,
        "problem": manager.trouble(),
        "versions": [
            {"version": s.version.version, "state": s.state, "reason": _reason(s), "engine": _engine(s)}
            for s in manager.servables
        ],
    }
    if current is None:
        body["error"] = f"No version is READY: {manager.why()}."
    return body


def _engine(servable: Servable) -> str | None:
    """What computes a version's answers; null until it is loaded."""
    return servable.loaded.runtime.engine.name if servable.loaded else None


def _reason(servable: Servable) -> str | None:
    """Why a version FAILED, or why a READY one cannot answer just now."""
    process = servable.loaded.process if servable.loaded else None
    if process is not None and process.trouble is not None:
        return f"its process {process.trouble}; it is being started again"
    return None if servable.reason is None else without_folders(servable.reason)


def _alias(manager: ModelManager, current: Servable | None) -> str | None:
    """The alias that is followed, else the first that the version carries."""
    vanished = not manager.aspired and not manager.stale
    if current is None or vanished or not current.version.aliases:
        return None
    followed = manager.uri.rpartition("@")[2]
    return followed if followed in current.version.aliases else current.version.aliases[0]


def is_ready(manager: ModelManager, number: str | None) -> bool:
    """Whether the current version, or the numbered one, is READY. Raises NotFound for one that is not loaded."""
    if number is None:
        return manager.current is not None
    with manager.lease(number):
        return True


def server_metadata() -> dict[str, Any]:
    """The body of `GET /v2`."""
    try:
        number = version("headway")
    except PackageNotFoundError:
        number = "0"
    return {"name": "headway", "version": number, "extensions": ["model_repository"]}


def metadata(manager: ModelManager, number: str | None) -> dict[str, Any]:
    """The body of `GET /v2/models/{m}`, for the current or a numbered version. Raises NotReady or NotFound."""
    with manager.lease(number) as servable:
        loaded, _ = servable.ready
        return {
            "name": manager.name,
            "versions": [s.version.version for s in manager.servables if s.state is State.READY],
            "platform": PLATFORM,
            "inputs": _inputs(loaded.signature),
            "outputs": loaded.outputs,
        }


def _inputs(signature: Signature) -> list[dict[str, Any]]:
    return [_spec(signature.inputs[i], i) for i in range(len(signature.inputs))]


def _spec(spec: Column | Tensor, index: int) -> dict[str, Any]:
    if isinstance(spec, Tensor):
        return {
            "name": tensor_name(spec, index),
            "datatype": TENSOR_DATATYPES.get(spec.dtype, "BYTES"),
            "shape": list(spec.shape),
        }
    return {"name": spec.name, "datatype": DATATYPES[spec.type], "shape": [-1, 1]}


def index(managers: Iterable[ModelManager], asleep: Iterable[str], *, only_ready: bool) -> list[dict[str, str]]:
    """The body of `POST /v2/repository/index`: one row per servable, or per name that has none."""
    rows = []
    for manager in managers:
        for servable in manager.servables:
            state = "READY" if servable.state is State.READY else str(servable.state)
            if servable.state is State.READY or not only_ready:
                rows.append(_row(manager.name, servable.version.version, state, without_folders(servable.reason or "")))
        if not manager.servables and not only_ready:
            rows.append(_row(manager.name, "", "UNAVAILABLE", manager.why()))
    if not only_ready:
        rows += [_row(name, "", "UNAVAILABLE", ASLEEP) for name in asleep]
    return rows


def _row(name: str, number: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": number, "state": state, "reason": reason}
