"""`headway verify`: would this version be loaded, and if not, why? Fetches it and reads it; loads nothing."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from registry.errors import InvalidReference
from registry.policies import EveryCarrier, Fixed, Policy, parse_reference
from serving.commands.base import CommandFailed, Verb, registry_flags, registry_settings, say
from serving.settings import ModelEntry, Settings, SettingsError, cache_folder, load_settings


def run(args: argparse.Namespace) -> int:
    """Prints the verdict; 0 only if the version would be loaded. Raises SettingsError, or what the registry raises."""
    try:
        policy = parse_reference(args.reference)
    except InvalidReference as error:
        raise SettingsError(str(error)) from error
    local = isinstance(policy, Fixed) and not policy.uri.startswith(("models:", "runs:"))
    settings = load_settings({}, os.environ, args.config) if local else registry_settings(args)
    found = _examine(policy, _entry(settings, policy, args.model_name), settings)
    print(json.dumps(found, indent=2, ensure_ascii=False) if args.json else _text(found))
    return 0 if found["loads"] else 1


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


def _examine(policy: Policy, entry: ModelEntry, settings: Settings) -> dict[str, Any]:
    from registry.cache import ArtifactCache
    from registry.mlflow_registry import MlflowRegistry
    from serving.options import options_of
    from serving.verdict import judge

    registry = MlflowRegistry(settings.registry.tracking_uri, settings.registry.registry_uri)
    folder = cache_folder(settings, os.environ)
    cache = ArtifactCache(folder, settings.registry.cache_bytes, registry.identity, registry.download)
    aspired = policy.aspire(registry.catalogue(policy))
    if not aspired:
        raise CommandFailed(f"{policy.uri} names no version")
    say(f"fetching {aspired[0].uri} …")
    files = cache.fetch(aspired[0])
    try:
        verdict = judge(aspired[0], files, options_of(entry, settings))
    finally:
        files.release()
    return {
        "reference": policy.uri, "version": aspired[0].uri, "source": aspired[0].source, "format": verdict.format,
        "size_bytes": files.size, "digest": f"sha256:{files.digest}", "signature": str(verdict.signature),
        "loads": not verdict.reasons, "reasons": list(verdict.reasons),
    }  # fmt: skip


def _text(found: dict[str, Any]) -> str:
    """One fact per line, then the verdict, then each reason."""
    facts = ("reference", "version", "source", "format", "size_bytes", "digest", "signature")
    lines = [f"{fact.removesuffix('_bytes'):<10} {found[fact]}" for fact in facts]
    lines[facts.index("size_bytes")] += " bytes"
    lines.append(f"{'verdict':<10} {'would be loaded' if found['loads'] else 'refused'}")
    return "\n".join(lines + [f"- {reason}" for reason in found["reasons"]])


def add_flags(parser: argparse.ArgumentParser) -> None:
    """What to look at, and with whose settings."""
    parser.add_argument("reference", metavar="REFERENCE", help="models:/NAME/3, models:/NAME@alias, a folder, …")
    parser.add_argument("--model-name", metavar="NAME", help="the entry of `models` whose settings count")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    registry_flags(parser)


VERB = Verb("verify", "say whether a version would be loaded, and every reason why not", add_flags, run)
