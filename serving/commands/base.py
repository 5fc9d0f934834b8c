"""What every verb is made of: its words, its flags, and what it does."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from serving.settings import Settings, SettingsError, load_settings

Run = Callable[[argparse.Namespace], int]


@dataclass(frozen=True, slots=True)
class Verb:
    """One word after `headway`. `run` gets the parsed flags and returns the exit code, 0 only on success."""

    name: str
    help: str
    flags: Callable[[argparse.ArgumentParser], None]
    run: Run


class CommandFailed(Exception):
    """A verb that could not do its work; the text is one sentence for the terminal. The exit code is 1."""


def say(text: str) -> None:
    """Progress and remarks, on standard error: standard output is for results."""
    print(text, file=sys.stderr)


def registry_flags(parser: argparse.ArgumentParser) -> None:
    """The flag by which verbs that talk to MLflow find it, beside the environment."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="headway.yaml, for registry.tracking_uri")


def registry_settings(args: argparse.Namespace) -> Settings:
    """The settings that `headway serve` would have, and a line that says whom we ask. Raises SettingsError."""
    settings = load_settings({}, os.environ, args.config)
    own = settings.registry.registry_uri or settings.registry.tracking_uri
    uri = own or os.environ.get("MLFLOW_REGISTRY_URI") or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:  # MLflow would make a database in the working folder
        raise SettingsError("which registry? Set MLFLOW_TRACKING_URI, or HEADWAY_REGISTRY__TRACKING_URI")
    say(f"asking the registry at {without_credentials(uri)} …")
    return settings


def check_repository(settings: Settings, environ: Mapping[str, str]) -> None:
    """Raises SettingsError unless a Feast repository is named, by the settings or by Feast's own variable."""
    if settings.features.repo_path is None and "FEAST_FS_YAML_FILE_PATH" not in environ:
        raise SettingsError("which repository? Set features.repo_path, or HEADWAY_FEATURES__REPO_PATH")


def without_credentials(uri: str) -> str:
    """The URI without user and password, to be shown."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
