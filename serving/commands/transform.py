"""`headway transform`: KServe's transformer container. The words with an underscore are those that KServe passes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from serving.commands.base import CommandFailed, Verb, check_repository
from serving.commands.serve import leave
from serving.ports import PortInUse
from serving.settings import Settings, load_settings


def run(args: argparse.Namespace) -> int:
    """Serves until a signal. Raises SettingsError, or CommandFailed if the port is taken."""
    settings = settings_from(args, os.environ)
    sys.argv = sys.argv[:1]
    from serving.app import transform

    try:
        transform(settings, args.model_name, args.predictor_host, args.feature_service)
    except PortInUse as error:
        raise CommandFailed(str(error)) from error
    leave(0)
    return 0


def settings_from(args: argparse.Namespace, environ: Mapping[str, str]) -> Settings:
    """The settings of the transformer; of `models` only the entry of its name counts, for its features and deadline."""
    flags = {key: getattr(args, key) for key in ("host", "port") if getattr(args, key) is not None}
    settings = load_settings({"server": flags}, environ, args.config)
    check_repository(settings, environ)
    return settings


def add_flags(parser: argparse.ArgumentParser) -> None:
    """KServe's, in its spelling, and ours."""
    name, host = "the predictor's name for the model", "where the predictor is: HOST[:PORT], or a URL"
    parser.add_argument("--model_name", "--model-name", required=True, metavar="NAME", help=name)
    parser.add_argument("--predictor_host", "--predictor-host", required=True, metavar="HOST", help=host)
    parser.add_argument("--http_port", "--port", type=int, dest="port", help="HTTP port (8080)")
    parser.add_argument("--workers", type=int, metavar="N", help="KServe passes it; one process answers all the same")
    parser.add_argument("--feature-service", required=True, metavar="NAME", help="the Feast feature service")
    parser.add_argument("--host", help="interface to listen on (0.0.0.0)")
    parser.add_argument("--config", type=Path, metavar="FILE", help="headway.yaml")


VERB = Verb("transform", "complete entity rows with Feast's features in front of a predictor", add_flags, run)
