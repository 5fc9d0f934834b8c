"""`headway serve`: flags become settings before kserve is imported, because kserve parses `sys.argv` at import."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving.commands.base import CommandFailed, Verb
from serving.ports import PortInUse
from serving.settings import Settings, SettingsError, load_settings, model_from_words
from serving.slim import skops_io

#: Where KServe's storage initializer puts a model's files.
MODELS_FOLDER = "/mnt/models"


def run(args: argparse.Namespace) -> int:
    """Serves until a signal. Raises SettingsError, or CommandFailed if a port is taken."""
    settings = settings_from(args, os.environ)
    sys.argv = sys.argv[:1]
    if settings.server.workers == 1:
        skops_io()  # first: it looks through every module there is, for each of hundreds of functions
        from serving.app import serve
    elif sys.platform == "linux":
        from serving.workers.root import supervise as serve
    else:
        raise SettingsError("server.workers: more than one needs Linux, which spreads connections over them")
    try:
        code = serve(settings)
    except PortInUse as error:
        raise CommandFailed(str(error)) from error
    leave(code)
    return code


def leave(code: int, patience: float = 1.0) -> None:
    """Ends the process at once if a model or the registry's client hangs in a thread, ours or one that a model's code
    has started: Python would wait for it."""
    until = time.monotonic() + patience
    threads = [thread for thread in threading.enumerate() if thread is not threading.current_thread()]
    awaited = [thread for thread in threads if not thread.daemon or thread.name.startswith("headway-")]
    for thread in awaited:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in awaited):
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
    uri = args.model_uri or environ.get("MODEL_URI") or None
    name = args.model_name or environ.get("MODEL_NAME") or None
    version = args.model_version or environ.get("MODEL_VERSION") or None
    if uri is None and version is None and environ.get("STORAGE_URI"):
        uri = mounted(environ["STORAGE_URI"])
        name = name or environ.get("INFERENCE_SERVICE_NAME") or None
    entry = model_from_words(uri, name, version)
    if entry is not None:
        flags["models"] = [entry]
    settings = load_settings(flags, environ, args.config)
    if not settings.models:
        raise SettingsError("no model is named: use --model-uri models:/NAME@alias, or `models` in --config")
    return settings


def mounted(storage_uri: str) -> str:
    """The folder that KServe's storage initializer has filled. KServe sets the container's `STORAGE_URI` to it, whatever
    the manifest said; where nobody has done so, the files are there all the same."""
    return storage_uri if storage_uri.startswith("/") else MODELS_FOLDER


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of the contract."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="headway.yaml")
    parser.add_argument("--model-uri", metavar="URI", help="models:/NAME/3, /Production, /latest or models:/NAME@alias")
    parser.add_argument("--model-name", metavar="NAME", help="the served name; without --model-uri the registered name")
    parser.add_argument("--model-version", metavar="V", help="a number, latest, a stage, or an alias")
    parser.add_argument("--host", help="interface to listen on (0.0.0.0)")
    parser.add_argument("--port", type=int, help="HTTP port (8080)")
    parser.add_argument("--grpc-port", type=int, help="gRPC port (8081)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes that share the ports (1)")
    parser.add_argument("--allow-pickle", action="store_true", help="load pickle and cloudpickle, which run code")


VERB = Verb("serve", "serve models of the registry over V1, V2 and gRPC", add_flags, run)
