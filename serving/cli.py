"""The `headway` command. Flags are parsed before kserve is imported, because kserve parses `sys.argv` at import."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.settings import Settings, SettingsError, load_settings, model_from_words


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0 only on success, 2 for a wrong flag or setting."""
    args = _parser().parse_args(argv)
    try:
        settings = settings_from(args, os.environ)
    except SettingsError as error:
        print(f"headway: {error}", file=sys.stderr)
        return 2
    sys.argv = sys.argv[:1]
    from serving.app import serve
    from serving.server import PortInUse

    try:
        code = serve(settings)
    except PortInUse as error:
        print(f"headway: {error}", file=sys.stderr)
        return 1
    _leave(code)
    return code


def _leave(code: int, patience: float = 1.0) -> None:
    """Ends the process at once if a model or the registry's client hangs in a thread: Python would wait for it."""
    until = time.monotonic() + patience
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("headway-")]
    for thread in ours:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in ours):
        logging.shutdown()
        os._exit(code)


def settings_from(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """Settings from flags, environment and file. Any of the model words makes the file's `models` void."""
    flags: dict[str, Any] = {"server": {}, "defaults": {}}
    for flag in ("host", "port", "grpc_port", "workers"):
        if getattr(args, flag) is not None:
            flags["server"][flag] = getattr(args, flag)
    if args.allow_pickle:
        flags["defaults"]["allow_pickle"] = True
    entry = model_from_words(
        args.model_uri or environ.get("MODEL_URI") or None,
        args.model_name or environ.get("MODEL_NAME") or None,
        args.model_version or environ.get("MODEL_VERSION") or None,
    )
    if entry is not None:
        flags["models"] = [entry]
    settings = load_settings(flags, environ, args.config)
    if not settings.models:
        raise SettingsError("no model is named: use --model-uri models:/NAME@alias, or `models` in --config")
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="headway", description="A KServe-compatible model server for the MLflow registry."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    serve = verbs.add_parser("serve", help="serve models of the registry over V1, V2 and gRPC", allow_abbrev=False)
    serve.add_argument("--config", type=Path, metavar="FILE", help="headway.yaml")
    serve.add_argument("--model-uri", metavar="URI", help="models:/NAME/3, /Production, /latest or models:/NAME@alias")
    serve.add_argument("--model-name", metavar="NAME", help="the served name; without --model-uri the registered name")
    serve.add_argument("--model-version", metavar="V", help="a number, latest, a stage, or an alias")
    serve.add_argument("--host", help="interface to listen on (0.0.0.0)")
    serve.add_argument("--port", type=int, help="HTTP port (8080)")
    serve.add_argument("--grpc-port", type=int, help="gRPC port (8081)")
    serve.add_argument("--workers", type=int, metavar="N", help="not built yet; one process")
    serve.add_argument("--allow-pickle", action="store_true", help="load pickle and cloudpickle, which run code")
    return parser


if __name__ == "__main__":
    sys.exit(main())
