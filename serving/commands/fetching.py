"""What verbs that look at one version share: which settings count for it, and its files."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from registry.errors import InvalidReference
from registry.policies import EveryCarrier, Fixed, Policy, parse_reference
from serving.commands.base import CommandFailed, registry_flags, registry_settings, say
from serving.settings import ModelEntry, Settings, SettingsError, cache_folder, load_settings

if TYPE_CHECKING:
    from registry.cache import Artifact
    from registry.versions import ModelVersion
    from serving.configuration import ModelOptions


@dataclass(frozen=True, slots=True)
class Fetched:
    """A version, its files, and what the operator says of it."""

    reference: str
    version: ModelVersion
    files: Artifact
    options: ModelOptions


@contextlib.contextmanager
def fetched(reference: str, args: argparse.Namespace) -> Iterator[Fetched]:
    """The version that a reference names, its files held meanwhile. Raises SettingsError, CommandFailed, or what the
    registry raises."""
    try:
        policy = parse_reference(reference)
    except InvalidReference as error:
        raise SettingsError(str(error)) from error
    local = isinstance(policy, Fixed) and not policy.uri.startswith(("models:", "runs:"))
    settings = load_settings({}, os.environ, args.config) if local else registry_settings(args)
    entry = _entry(settings, policy, args.model_name)
    one = _fetch(policy, entry, settings)
    try:
        yield one
    finally:
        one.files.release()


def entry_flags(parser: argparse.ArgumentParser) -> None:
    """With whose settings to look."""
    parser.add_argument("--model-name", metavar="NAME", help="the entry of `models` whose settings count")
    registry_flags(parser)


def _fetch(policy: Policy, entry: ModelEntry, settings: Settings) -> Fetched:
    from registry.cache import ArtifactCache
    from registry.mlflow_registry import MlflowRegistry
    from serving.options import options_of

    registry = MlflowRegistry(settings.registry.tracking_uri, settings.registry.registry_uri)
    folder = cache_folder(settings, os.environ)
    cache = ArtifactCache(folder, settings.registry.cache_bytes, registry.identity, registry.download)
    aspired = policy.aspire(registry.catalogue(policy))
    if not aspired:
        raise CommandFailed(f"{policy.uri} names no version")
    say(f"fetching {aspired[0].uri} …")
    return Fetched(policy.uri, aspired[0], cache.fetch(aspired[0]), options_of(entry, settings))


def _entry(settings: Settings, policy: Policy, name: str | None) -> ModelEntry:
    """The entry whose settings count: the named one, else the one of this reference, else of this registered model."""
    policies = [(entry, parse_reference(entry.uri)) for entry in settings.models]
    if name is not None:
        candidates = [entry for entry, _ in policies if entry.name == name]
        if not candidates:
            raise SettingsError(f"models: there is no entry of the name {name[:64]!r}")
    else:
        candidates = [entry for entry, other in policies if other.uri == policy.uri]
        candidates = candidates or [entry for entry, other in policies if policy.name and other.name == policy.name]
        candidates = candidates or [e for e, other in policies if policy.name and isinstance(other, EveryCarrier)]
    if len(candidates) > 1:
        names = ", ".join(entry.name for entry in candidates)
        raise SettingsError(f"several entries of models could mean it: choose with --model-name one of {names}")
    if not candidates:
        say("no entry of models means it: what `defaults` say counts")
        return ModelEntry(name="model", uri=policy.uri)
    say(f"as the entry {candidates[0].name or candidates[0].uri} of models")
    return candidates[0]
