"""How each program is started on the same model."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.bench import environments
from scripts.bench.experiments import MAX_QUEUE, MAX_ROWS, NAME
from scripts.bench.saved import Saved

SERVERS = Path(__file__).parent / "servers"


@dataclass(frozen=True)
class Job:
    """One server to start: its options, the model, a folder of its own, free ports, and a Feast repository."""

    options: Mapping[str, Any]
    saved: Saved
    home: Path
    port: int
    grpc_port: int
    spare_port: int
    feast: Path | None = None


@dataclass(frozen=True)
class Command:
    """Words, and what the environment says besides."""

    words: list[str]
    environ: dict[str, str] = field(default_factory=dict)


def command(program: str, job: Job) -> Command:
    """How a program serves a job. Raises Unavailable where its environment cannot be had."""
    return _PROGRAMS[program](job)


#: Of our options, those of the batcher and those of the server; all others are the model's own.
_BATCHING = ("max_rows", "max_queue", "max_wait_ms", "inline_below_ms")
_SERVER = ("lane", "workers")


def settings(job: Job) -> dict[str, Any]:
    """Our `headway.yaml`."""
    said = {"max_rows": MAX_ROWS, "max_queue": MAX_QUEUE, **job.options}
    others = {k: v for k, v in said.items() if k not in (*_BATCHING, *_SERVER, "features")}
    batching = {k: said[k] for k in _BATCHING if k in said}
    model = {"name": NAME, "uri": str(job.saved.folder / "mlflow"), "batching": batching, **others}
    tree = {
        "models": [model],
        "server": {k: said[k] for k in _SERVER if k in said},
        "registry": {"cache_dir": str(job.home / "cache")},
    }
    return tree if job.feast is None else {**tree, "features": {"repo_path": str(job.feast)}}


def _headway(job: Job) -> Command:
    file = job.home / "headway.yaml"
    file.write_text(json.dumps(settings(job)))
    ports = ["--port", str(job.port), "--grpc-port", str(job.grpc_port)]
    words = ["-m", "serving.cli", "serve", "--config", str(file), "--host", "127.0.0.1", *ports]
    return Command([sys.executable, *words])


def _kserve(job: Job) -> Command:
    words = ["-m", "scripts.bench.servers.kserve_model", str(job.saved.folder), str(job.port), str(job.grpc_port)]
    return Command([sys.executable, *words, *(["--proba"] if job.options.get("proba") else [])])


def _bare(job: Job) -> Command:
    words = ["-m", "scripts.bench.servers.bare", str(job.saved.folder), str(job.port), job.options["how"]]
    return Command([sys.executable, *words])


def _mlflow(job: Job) -> Command:
    model = job.saved.folder / ("tensor" if job.options["signature"] == "tensor" else "mlflow")
    flags = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(job.port), "--workers", "1"]
    return Command([sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), *flags])


def _environ(job: Job) -> dict[str, str]:
    return {
        "MODEL": str(job.saved.folder / "model.pkl"),
        "MAX_ROWS": str(job.options["max_rows"]),
        "WAIT_MS": str(job.options.get("wait_ms", 1)),
        "PORT": str(job.port),
        "PYTHONPATH": "",
    }


def _ray(job: Job) -> Command:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"}
    return Command([sys.executable, str(SERVERS / "ray_app.py")], {**_environ(job), **quiet})


def _mosec(job: Job) -> Command:
    python = environments.folder("mosec") / "python"
    words = [str(python), str(SERVERS / "mosec_app.py"), "--address", "127.0.0.1", "--port", str(job.port)]
    return Command([*words, "--timeout", "60000"], _environ(job))


def _litserve(job: Job) -> Command:
    return Command([str(environments.folder("litserve") / "python"), str(SERVERS / "litserve_app.py")], _environ(job))


def _bentoml(job: Job) -> Command:
    words = ["serve", "bentoml_app:Predict", "--working-dir", str(SERVERS), "--host", "127.0.0.1"]
    environ = {**_environ(job), "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(job.home / "bentoml")}
    return Command([str(environments.folder("bentoml") / "bentoml"), *words, "--port", str(job.port)], environ)


def _mlserver(job: Job) -> Command:
    batching = {"max_batch_size": job.options["max_rows"], "max_batch_time": job.options.get("wait_ms", 0) / 1000}
    model = {
        "name": NAME,
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": str(job.saved.folder / "model.pkl")},
        **(batching if job.options["max_rows"] > 1 else {}),
    }
    ports = {"http_port": job.port, "grpc_port": job.grpc_port, "metrics_port": job.spare_port}
    server = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
    (job.home / "model-settings.json").write_text(json.dumps(model))
    (job.home / "settings.json").write_text(json.dumps(server))
    return Command([str(environments.folder("mlserver") / "mlserver"), "start", str(job.home)], _environ(job))


_PROGRAMS: dict[str, Callable[[Job], Command]] = {
    "headway": _headway, "kserve": _kserve, "bare": _bare, "mlflow": _mlflow, "ray": _ray,
    "mosec": _mosec, "litserve": _litserve, "bentoml": _bentoml, "mlserver": _mlserver,
}  # fmt: skip
