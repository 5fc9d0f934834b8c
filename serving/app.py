"""The composition root: names the concrete classes, and is the only reader of settings."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import prometheus_client
import uvloop

from features.breaker import Circuit
from features.store import FeastSource
from monitoring.logs import configure_logging
from monitoring.metrics import Metrics
from registry.cache import ArtifactCache
from registry.mlflow_registry import MlflowRegistry
from registry.policies import EVERY, EveryCarrier, Fixed, Pinned, parse_reference
from serving.crew import Alone, Crew
from serving.dataplane import DataPlane
from serving.doors import Doors
from serving.ending import MARGIN_SECONDS, end_within
from serving.errors import REASONS
from serving.fleet import Fleet, Seat
from serving.herd import Herd
from serving.lifecycle import State
from serving.loading import Loader
from serving.malloc import give_back, keep_freed
from serving.manager import ModelManager
from serving.memory import resident_bytes
from serving.model import RegistryModel
from serving.named import Finder
from serving.options import options_of
from serving.poller import Poller
from serving.ports import check_port
from serving.predictor import Predictor
from serving.recorder import Recorder
from serving.runtimes.process import Processes
from serving.runtimes.spawn import Ending
from serving.server import Address, HeadwayServer, kserve_app, serve_http
from serving.settings import ModelEntry, Served, Settings, cache_folder
from serving.transforming import Transformer
from serving.transport.http import Http
from serving.transport.room import Room
from serving.transport.transformer import TransformerHttp
from serving.transport.webhook import Webhook
from serving.workers.linked import Linked

log = logging.getLogger("headway.server")


def serve(settings: Settings) -> int:
    """Runs the server until a signal; returns the exit code. Raises PortInUse before anything else starts."""
    configure_logging(settings.monitoring.log_level)
    for port in (settings.server.port, settings.server.grpc_port):
        check_port(settings.server.host, port)
    return _run(settings, lambda own: own)


def work(settings: Settings, end: socket.socket, number: int, doors: Sequence[socket.socket]) -> int:
    """Runs the server as one worker of several; `end` is its end of the link to their supervisor, `doors` are what they
    listen on, by their numbers."""
    configure_logging(settings.monitoring.log_level, worker=number)
    return _run(settings, lambda own: Linked(own, end, Doors(doors, number)))


def _run(settings: Settings, enlist: Callable[[Alone], Crew]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        asyncio.set_event_loop(runner.get_loop())  # kserve's constructor asks for the thread's loop
        code = 1
        try:
            code = runner.run(_serve(settings, enlist))
        finally:  # it may have ended by an error, with models that hang in threads
            end_within(MARGIN_SECONDS, code)
        return code


def transform(settings: Settings, name: str, predictor_host: str, feature_service: str) -> None:
    """Runs the transformer of one model until a signal. Raises PortInUse before anything else starts."""
    configure_logging(settings.monitoring.log_level)
    check_port(settings.server.host, settings.server.port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_transform(settings, name, predictor_host, feature_service))


async def _transform(settings: Settings, name: str, predictor_host: str, feature_service: str) -> None:
    metrics = _metrics()
    features = _features(settings, metrics)
    assert features is not None
    said: list[Served] = [*(entry for entry in settings.models if entry.name == name), settings.defaults]
    layers = [each.features.layer() for each in said]
    timeout_ms = next((each.timeout_ms for each in said if each.timeout_ms is not None), 1000.0)
    predictor = Predictor(predictor_host)
    transformer = Transformer(name, predictor, lambda types: features.lookup(feature_service, types, layers), metrics)
    address = _address(settings)
    limit, timeout = settings.server.max_body_bytes, timeout_ms / 1000 or None
    http = TransformerHttp(transformer, predictor, metrics, limit, timeout, address.room)
    following = asyncio.create_task(transformer.follow())
    facts = {"port": settings.server.port, "model": name, "predictor": predictor_host}
    await serve_http(http, address, lambda: log.info("listening", extra=facts))
    following.cancel()
    await predictor.close()
    await features.close()


def _metrics() -> Metrics:
    return Metrics(prometheus_client.REGISTRY, REASONS, [s.value for s in State], [e.value for e in Ending])


async def _serve(settings: Settings, enlist: Callable[[Alone], Crew]) -> int:
    metrics = _metrics()
    recorder = Recorder(metrics)
    registry = MlflowRegistry(settings.registry.tracking_uri, settings.registry.registry_uri)
    cache = ArtifactCache(_cache_folder(settings), settings.registry.cache_bytes, registry.identity, registry.download)
    features = _features(settings, metrics)
    seats: dict[str, Seat] = {}
    limits = settings.server
    fleet = Fleet(
        seats,
        limits.memory_bytes,
        limits.on_demand_seconds,
        resident_bytes,
        Finder(registry, settings.registry.poll_seconds),
        limits.on_demand_versions,
        leave_seconds=limits.load_seconds,
    )

    own = Alone(fleet, metrics)
    crew = enlist(own)

    def seat(entry: ModelEntry) -> Seat:
        manager = _manager(entry, settings, registry, cache, features, recorder, fleet)
        return Seat(manager, _poller(entry, settings, registry, cache, manager, metrics, crew))

    seats.update({entry.name: seat(entry) for entry in settings.models if entry.name})
    _follow(settings, fleet, registry, recorder, metrics, seat, crew)
    plane = DataPlane(fleet, metrics, crew, repository_api=settings.security.repository_api)
    webhook = _webhook(settings, own, crew, metrics)
    address = _address(settings)
    http = Http(plane, metrics, kserve_app, limits.max_body_bytes, crew.exposition, webhook, address.room)
    server = HeadwayServer(address, plane, http, fleet, crew)
    for name, each in seats.items():
        server.register_model(RegistryModel(name, lambda: plane))
        if limits.fail_fast:
            each.manager.first_failure = server.fail
    gc.freeze()  # what is imported stays; collecting after an unload then costs little
    give_back()  # what importing took in passing; what requests free is kept
    keep_freed(os.environ)
    # A full collection stands still for a tenth of a second, and requests leave no old cycles: unloading collects them.
    gc.set_threshold(*gc.get_threshold()[:2], 1000)
    code = await server.serve(lambda: _started(settings))
    if features is not None:
        await features.close()
    return code


def _follow(
    settings: Settings,
    fleet: Fleet,
    registry: MlflowRegistry,
    recorder: Recorder,
    metrics: Metrics,
    seat: Callable[[ModelEntry], Seat],
    crew: Crew,
) -> None:
    """Serves every model that carries an alias, if an entry says so. Each has that entry's settings."""
    for entry in settings.models:
        policy = parse_reference(entry.uri)
        if isinstance(policy, EveryCarrier):
            herd = Herd(policy, frozenset(fleet.seats), fleet.tidy)

            def make(name: str, entry: ModelEntry = entry, policy: EveryCarrier = policy) -> Seat:
                recorder.model_came(name)
                return seat(entry.model_copy(update={"name": name, "uri": policy.of(name).uri, "on_demand": True}))

            period = settings.registry.poll_seconds
            poller = Poller(registry, policy, herd, period, _counted(metrics), changed=partial(crew.nudge, policy.name))
            fleet.follow(herd, poller, make, recorder.model_gone)


def _counted(metrics: Metrics) -> Callable[[str, bool], None]:
    return lambda name, ok: metrics.polls.labels(name, "ok" if ok else "error").inc()


def _started(settings: Settings) -> None:
    log.info(
        "listening",
        extra={
            "host": settings.server.host,
            "port": settings.server.port,
            "grpc_port": settings.server.grpc_port,
            "models": {entry.name or EVERY: entry.uri for entry in settings.models},
        },
    )


def _features(settings: Settings, metrics: Metrics) -> FeastSource | None:
    """The Feast repository of the settings, or the one that Feast's own variable names."""
    repo_path = settings.features.repo_path
    if repo_path is None and "FEAST_FS_YAML_FILE_PATH" not in os.environ:
        return None

    def observe(outcome: str, entities: int, seconds: float) -> None:
        metrics.reads.labels(outcome).inc()
        metrics.read_entities.observe(entities)
        metrics.read_latency.observe(seconds)

    def show(circuit: Circuit) -> None:
        for state in Circuit:
            metrics.circuit.labels(state).set(state is circuit)

    def changed(circuit: Circuit) -> None:
        metrics.circuit_changes.labels(circuit).inc()
        show(circuit)

    show(Circuit.CLOSED)
    return FeastSource(Path(repo_path or "."), settings.features.timeout_ms / 1000, observe, changed)


def _manager(
    entry: ModelEntry,
    settings: Settings,
    registry: MlflowRegistry,
    cache: ArtifactCache,
    features: FeastSource | None,
    recorder: Recorder,
    fleet: Fleet,
) -> ModelManager:
    uri = parse_reference(entry.uri).uri
    processes = Processes(settings.server.load_seconds, partial(recorder.lost, entry.name))
    return ModelManager(
        entry.name,
        uri,
        Loader(cache, options_of(entry, settings), features, processes, registry.recorded_features, entry.name),
        recorder,
        drain_seconds=settings.server.drain_seconds,
        load_seconds=settings.server.load_seconds,
        required=entry.readiness_waits,
        on_demand=entry.on_demand,
        room=fleet.room,
        turns=fleet.turns,
        remember=lambda version: cache.remember(uri, version),
    )


def _poller(
    entry: ModelEntry,
    settings: Settings,
    registry: MlflowRegistry,
    cache: ArtifactCache,
    manager: ModelManager,
    metrics: Metrics,
    crew: Crew,
) -> Poller:
    policy = parse_reference(entry.uri)
    fixed = isinstance(policy, Pinned | Fixed)
    period = settings.registry.pinned_poll_seconds if fixed else settings.registry.poll_seconds
    recall = partial(cache.recall, policy.uri)
    nudge = partial(crew.nudge, policy.name)
    return Poller(registry, policy, manager, period, _counted(metrics), recall, nudge, missing=manager.missing)


def _webhook(settings: Settings, own: Alone, crew: Crew, metrics: Metrics) -> Webhook | None:
    """The webhook's route, if there is a secret to trust it by."""
    secret = settings.registry.webhook_secret
    if secret is None:
        return None

    def wake(name: str) -> int:
        crew.nudge(name)
        return own.wake(name)

    return Webhook(secret.get_secret_value(), wake, lambda outcome: metrics.webhooks.labels(outcome).inc())


def _cache_folder(settings: Settings) -> Path:
    """The folder of the artifact cache. A container without a home gets one that lasts as long as this process."""
    folder = cache_folder(settings, os.environ)
    if settings.registry.cache_dir is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            writable = os.access(folder, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            log.warning("registry.cache_dir is not set and there is no home: nothing is kept over a restart")
            return Path(tempfile.mkdtemp(prefix="headway-"))
    return folder


def _address(settings: Settings) -> Address:
    s = settings.server
    return Address(
        s.host, s.port, s.grpc_port, s.drain_delay_seconds, s.drain_seconds, s.max_body_bytes, s.read_seconds,
        s.keep_alive_seconds, s.lane,
        s.max_connections, Room(s.buffered_bytes), shared=s.workers > 1,
    )  # fmt: skip
