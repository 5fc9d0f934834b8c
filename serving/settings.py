"""Settings: one tree of plain values from flags, environment and file, in that precedence, key by key.

Unknown keys in the file and unknown `HEADWAY_*__*` names are errors that name the key. Only the composition root
reads this module; everything else takes plain values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from registry.errors import InvalidReference
from registry.policies import EveryCarrier, parse_reference, selector
from serving.feature_policy import FeaturePolicies
from serving.prefixes import check_prefix

PREFIX = "HEADWAY_"
SHORTEST_SECRET = 8
#: Seconds; gRPC counts milliseconds in 32 bits.
MOST_IDLE = 2_000_000


class SettingsError(ValueError):
    """A setting that is unknown, malformed, or whose part is not built yet. The text names the key."""


def _not_built(value: Any) -> Any:
    if value is True or value not in (None, False):
        raise ValueError("is not built yet; leave it out")
    return value


def _long_enough(secret: SecretStr | None) -> SecretStr | None:
    if secret is not None and len(secret.get_secret_value()) < SHORTEST_SECRET:
        raise ValueError(f"must have at least {SHORTEST_SECRET} characters")
    return secret


def _digest(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"(sha256:)?[0-9a-fA-F]{64}", value):
        raise ValueError("must be sha256: and 64 hexadecimal digits, as headway verify prints them")
    return value and f"sha256:{value.removeprefix('sha256:').lower()}"


def _inner_file(value: str | None) -> str | None:
    if value is not None and (not value or value.startswith("/") or ".." in value.split("/")):
        raise ValueError("must be the name of a file among the version's own")
    return value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


#: A list that may be one word: in the environment that is easier to write.
Words = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Prefixes = Annotated[tuple[Annotated[str, AfterValidator(check_prefix)], ...], BeforeValidator(_as_list)]


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Batching(_Group):
    """Batching of one version; rows, milliseconds, rows, a share of the queue, milliseconds, batches at once, and whether
    clients may ask for high priority."""

    max_rows: int | None = Field(None, ge=1, le=65536)
    max_wait_ms: float | None = Field(None, ge=0, le=60_000)
    max_queue: int | None = Field(None, ge=1)
    high_watermark: float | None = Field(None, gt=0, le=1)
    inline_below_ms: float | None = Field(None, ge=0)
    target_latency_ms: float | None = Field(None, gt=0)
    concurrency: int | None = Field(None, ge=1, le=64)
    client_priority: bool | None = None


class ResponseCache(_Group):
    """Answers that one version keeps in memory: bytes, and seconds."""

    max_bytes: int | None = Field(None, ge=0)
    ttl_seconds: float | None = Field(None, gt=0)


class Server(_Group):
    """The process and its ports."""

    host: str = "0.0.0.0"  # noqa: S104  a server in a container listens on every interface
    port: int = Field(8080, ge=0, le=65535)
    grpc_port: int = Field(8081, ge=0, le=65535)
    max_body_bytes: int = Field(16_777_216, ge=1)
    max_buffered_bytes: int | None = Field(None, ge=1)
    max_connections: int = Field(4096, ge=1)
    read_seconds: float = Field(60.0, gt=0)
    keep_alive_seconds: float = Field(75.0, gt=0, le=MOST_IDLE)
    lane: Literal["protocol", "asgi"] = "protocol"
    drain_delay_seconds: float = Field(0.0, ge=0)
    drain_seconds: float = Field(25.0, ge=0)
    load_seconds: float = Field(600.0, gt=0)
    fail_fast: bool = False
    memory_bytes: int | None = Field(None, ge=1)
    on_demand_seconds: float = Field(30.0, gt=0)
    on_demand_versions: int = Field(4, ge=1, le=1000)
    workers: int = Field(1, ge=1, le=256)
    docs: Annotated[bool, AfterValidator(_not_built)] = False

    @property
    def buffered_bytes(self) -> int:
        """What clients may make one process hold: unsaid, sixteen of the longest requests."""
        return self.max_buffered_bytes or 16 * self.max_body_bytes


class Registry(_Group):
    """Where the registry is, how often to look, and where its artifacts are kept. MLflow's own variables say the rest
    (credentials, TLS)."""

    tracking_uri: str | None = None
    registry_uri: str | None = None
    poll_seconds: float = Field(10.0, gt=0)
    pinned_poll_seconds: float = Field(60.0, gt=0)
    cache_dir: str | None = None
    cache_bytes: int = Field(10 * 2**30, ge=0)
    webhook_secret: Annotated[SecretStr | None, AfterValidator(_long_enough)] = None


class Features(_Group):
    """The Feast repository: the folder that holds `feature_store.yaml`. Without one, rows must bring every column.
    `timeout_ms` bounds one read of its online store."""

    repo_path: str | None = None
    timeout_ms: float = Field(250.0, gt=0, le=60_000)


class Security(_Group):
    """Who may do what."""

    repository_api: bool = False
    allow_pickle_from: Prefixes = ()
    allow_code_from: Prefixes = ()


class Monitoring(_Group):
    """Logs and metrics."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class Signature(_Group):
    """Whose signatures count, and where in a version's files they are. Paths are of this machine's PEM files."""

    required: bool | None = None
    file: Annotated[str | None, AfterValidator(_inner_file)] = None
    public_key: str | None = None
    certificate_chain: Words | None = None

    @property
    def trusts(self) -> bool:
        """Whether there is anything to check a signature with."""
        return bool(self.public_key or self.certificate_chain)


class Torch(_Group):
    """How PyTorch computes a network."""

    device: Literal["cpu", "cuda", "auto"] | None = None
    compile: bool | None = None
    autocast: Literal["none", "bfloat16", "float16"] | None = None


class Served(_Group):
    """What both `defaults` and an entry of `models` may say of a model."""

    allow_pickle: bool | None = None
    allow_code: bool | None = None
    timeout_ms: float | None = Field(None, ge=0)
    signature: Signature = Signature()
    batching: Batching = Batching()
    output: Literal["auto", "labels", "probabilities", "raw"] | None = None
    per_instance: bool | None = None
    ignore_extra_columns: bool | None = None
    isolation: Literal["auto", "process", "none"] | None = None
    memory_mb: int | None = Field(None, ge=0)
    hang_seconds: float | None = Field(None, gt=0)
    features: FeaturePolicies = FeaturePolicies()
    accelerate: Literal["auto", "off"] | None = None
    torch: Torch = Torch()
    response_cache: ResponseCache = ResponseCache()


class ModelEntry(Served):
    """One served model: its name, the reference it follows, and its own settings; or every model that carries an alias,
    and no name."""

    name: str = Field("", pattern=r"^[^/:\x00-\x1f\x7f]+$")
    uri: str
    required: bool | None = None
    on_demand: bool = False
    digest: Annotated[str | None, AfterValidator(_digest)] = None

    @property
    def readiness_waits(self) -> bool:
        """Whether it is required: unsaid, what is not on demand is."""
        return not self.on_demand if self.required is None else self.required


class Settings(_Group):
    """Everything an operator can say."""

    server: Server = Server()
    registry: Registry = Registry()
    features: Features = Features()
    security: Security = Security()
    monitoring: Monitoring = Monitoring()
    defaults: Served = Served()
    models: tuple[ModelEntry, ...] = ()


GROUPS = ("server", "registry", "features", "security", "monitoring", "defaults")


def load_settings(flags: Mapping[str, Any], environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """Merges the three sources and validates. `flags` is a nested mapping like the file's. Raises SettingsError."""
    tree = _merge(_merge(_from_file(file), _from_environ(environ)), flags)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        raise SettingsError(_first(error)) from error
    _check_models(settings)
    if settings.server.buffered_bytes < settings.server.max_body_bytes:
        raise SettingsError("server.max_buffered_bytes: is less than server.max_body_bytes, one request")
    return settings


def cache_folder(settings: Settings, environ: Mapping[str, str]) -> Path:
    """Where artifacts are kept: the setting, else the user's own cache folder."""
    if settings.registry.cache_dir is not None:
        return Path(settings.registry.cache_dir)
    return Path(environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "headway"


def model_from_words(uri: str | None, name: str | None, version: str | None) -> dict[str, Any] | None:
    """The one `models` entry that `--model-uri`, `--model-name` and `--model-version` mean, or None without them."""
    if uri is not None:
        if version is not None:
            raise SettingsError("--model-version goes with --model-name alone; --model-uri already names a version")
        try:
            policy = parse_reference(uri)
        except InvalidReference as error:
            raise SettingsError(str(error)) from error
        if isinstance(policy, EveryCarrier):
            return {"uri": uri, **({"name": name} if name else {})}
        served = name or policy.name
        if not served:
            raise SettingsError("--model-name is required: that reference has no registered name to serve it under")
        return {"name": served, "uri": uri}
    if name is None and version is None:
        return None
    if name is None or version is None:
        raise SettingsError("--model-name without --model-uri needs --model-version, and the other way round")
    try:
        return {"name": name, "uri": selector(name, version).uri}
    except InvalidReference as error:
        raise SettingsError(str(error)) from error


def _check_models(settings: Settings) -> None:
    _check_signature("defaults", settings.defaults, settings.defaults)
    names = [entry.name for entry in settings.models]
    for name in names:
        if names.count(name) > 1:
            raise SettingsError(f"models: {f'the name {name!r}' if name else 'an entry without a name'} stands twice")
    for i, entry in enumerate(settings.models):
        _check_signature(f"models[{i}]", entry, settings.defaults)
        try:
            herd = isinstance(parse_reference(entry.uri), EveryCarrier)
        except InvalidReference as error:
            raise SettingsError(f"models[{i}].uri: {error}") from error
        if herd:
            _check_herd(f"models[{i}]", entry)
        elif not entry.name:
            raise SettingsError(f"models[{i}].name: is needed")


def _check_herd(where: str, entry: ModelEntry) -> None:
    """What can be said of one model, and not of every model that carries an alias. Raises SettingsError."""
    said = {"name": entry.name, "digest": entry.digest, "required": entry.required}
    for key, value in said.items():
        if value:
            raise SettingsError(f"{where}.{key}: cannot be said of {entry.uri}, which is many models")
    if "on_demand" in entry.model_fields_set and not entry.on_demand:
        raise SettingsError(f"{where}.on_demand: models of {entry.uri} are always on demand")


def _check_signature(where: str, entry: Served, defaults: Served) -> None:
    """A signature that is required must be checkable. Raises SettingsError."""
    required = defaults.signature.required if entry.signature.required is None else entry.signature.required
    if required and not (entry.signature.trusts or defaults.signature.trusts):
        raise SettingsError(f"{where}.signature: it is required, and there is no public_key and no certificate_chain")


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        tree = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{file} is not YAML: {str(error).splitlines()[0]}") from error
    if tree is not None and not isinstance(tree, dict):
        raise SettingsError(f"{file} must be a mapping of groups")
    return tree or {}


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """`HEADWAY_SERVER__PORT=9000` is `server.port`. Names without `__` are ignored: Kubernetes injects such."""
    tree: dict[str, Any] = {}
    for name, value in sorted(environ.items()):
        path = name.removeprefix(PREFIX).lower().split("__")
        if not name.startswith(PREFIX) or len(path) < 2:
            continue
        if path[0] not in GROUPS:
            raise SettingsError(f"{name}: there is no group {path[0]!r}; the groups are {', '.join(GROUPS)}")
        _plant(tree, path, value, name)
    return tree


def _plant(tree: dict[str, Any], path: Sequence[str], value: str, name: str) -> None:
    node = tree
    for key in path[:-1]:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise SettingsError(f"{name}: {key} is a value, not a group")
    try:
        node[path[-1]] = json.loads(value) if value[:1] in "[{" and value else value
    except json.JSONDecodeError as error:
        raise SettingsError(f"{name} looks like JSON and is not: {error.msg}") from error


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        env = f" (environment: {PREFIX}{where.replace('.', '__').upper()})" if "." in where else ""
        return f"{where}: there is no such setting{env}"
    return f"{where}: {found['msg'].removeprefix('Value error, ')}"
