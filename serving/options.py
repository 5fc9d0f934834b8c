"""From settings to what holds for one model, as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry.signatures import DEFAULT_FILE, SignatureRule
from serving.configuration import ModelOptions, TorchOptions
from serving.response_cache import CacheLimits
from serving.settings import ModelEntry, ResponseCache, Served, Settings, Signature, Torch


def options_of(entry: ModelEntry, settings: Settings) -> ModelOptions:
    """One model's options: its entry first, then `defaults`, then what is built in. What an entry says of pickles or code
    holds for every version of it, so that `false` there takes back what a prefix allows."""
    defaults, security = settings.defaults, settings.security
    timeout = _first(entry.timeout_ms, defaults.timeout_ms)
    return ModelOptions(
        allow_pickle=bool(_first(entry.allow_pickle, defaults.allow_pickle)),
        allow_code=bool(_first(entry.allow_code, defaults.allow_code)),
        allow_pickle_from=security.allow_pickle_from if entry.allow_pickle is None else (),
        allow_code_from=security.allow_code_from if entry.allow_code is None else (),
        digest=entry.digest,
        signature=_signature(entry.signature, defaults.signature),
        timeout_ms=1000.0 if timeout is None else float(timeout),
        ignore_extra_columns=bool(_first(entry.ignore_extra_columns, defaults.ignore_extra_columns)),
        isolation=_first(entry.isolation, defaults.isolation, "auto"),
        memory_mb=int(_first(entry.memory_mb, defaults.memory_mb, 0)),
        hang_seconds=float(_first(entry.hang_seconds, defaults.hang_seconds, 60.0)),
        accelerate=_first(entry.accelerate, defaults.accelerate, "auto"),
        torch=_torch(entry.torch, defaults.torch, shared=settings.server.workers > 1),
        response_cache=_cache(entry.response_cache, defaults.response_cache),
        entry=_layer(entry),
        defaults=_layer(defaults),
    )


def _layer(said: Served) -> dict[str, Any]:
    """What a version may say of itself as well, as the operator says it."""
    own = {"output": said.output, "per_instance": said.per_instance, "features": said.features.layer()}
    return {**said.batching.model_dump(), **own}


def _signature(own: Signature, defaults: Signature) -> SignatureRule:
    """Who names a key or certificates of its own trusts no others."""
    trusted = own if own.trusts else defaults
    return SignatureRule(
        required=bool(_first(own.required, defaults.required)),
        file=own.file or defaults.file or DEFAULT_FILE,
        public_key=Path(trusted.public_key) if trusted.public_key else None,
        certificates=tuple(Path(path) for path in trusted.certificate_chain or ()),
    )


def _cache(own: ResponseCache, defaults: ResponseCache) -> CacheLimits:
    return CacheLimits(int(_first(own.max_bytes, defaults.max_bytes, 0)), _first(own.ttl_seconds, defaults.ttl_seconds))


def _torch(own: Torch, defaults: Torch, *, shared: bool) -> TorchOptions:
    return TorchOptions(
        device=_first(own.device, defaults.device, "cpu"),
        compile=bool(_first(own.compile, defaults.compile)),
        autocast=_first(own.autocast, defaults.autocast, "none"),
        shared=shared,
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
