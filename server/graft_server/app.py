"""The composition root: the only module that knows every room of the server and puts them together."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import sys
from contextlib import AsyncExitStack, closing, nullcontext
from datetime import timedelta
from functools import partial

from fastapi import FastAPI

from graft_client.errors import GraftError
from graft_client.schemas.adapters import VersionInfo
from graft_client.schemas.jobs import JobInfo, JobState
from graft_plugins.manager import PluginHost
from graft_server import base_model
from graft_server.access.keyring import Keyring
from graft_server.admission.gate import Gate
from graft_server.admission.turnstile import Turnstile
from graft_server.api import (
    access,
    adapters,
    aliases,
    bundles,
    composition,
    datasets,
    evaluations,
    gc,
    health,
    jobs,
    keys,
    middleware,
    openapi,
    predict,
    problems,
    routes,
    tasks,
)
from graft_server.api.openai import batches, chat, completions, embeddings, files, fine_tuning, models, responses
from graft_server.api.openai.batch_calls import BatchCalls
from graft_server.api.openai.file_rows import read_batch
from graft_server.api.views import job_info, version_info
from graft_server.config import Settings
from graft_server.engine.base import Engine, EngineError
from graft_server.engine.messages import EngineConfig
from graft_server.engine.stats_cache import StatsCache
from graft_server.engine.supervisor import SupervisedEngine
from graft_server.follower import Follower
from graft_server.http_server import HttpServer, bind, is_loopback, new_event_loop, url_of
from graft_server.instance import claimed, write_note
from graft_server.observability import Metrics, configure_logging
from graft_server.observers import Observers
from graft_server.plugins import server_plugins
from graft_server.progress import StartupProgress
from graft_server.quotas.meter import Meter
from graft_server.registry import Registry, RegistryError
from graft_server.registry.records import JobRecord, VersionRecord
from graft_server.routing.auto.catalogue import FOLDER as PROFILES
from graft_server.routing.auto.catalogue import ProfileCatalogue
from graft_server.routing.auto.choice import AutoRouter
from graft_server.routing.resolver import Resolver
from graft_server.routing.states import StateCache
from graft_server.services import UPLOADS, Services, base_name
from graft_server.serving.batch_takeover import BatchTakeover
from graft_server.serving.batches import FOLDER as BATCHES
from graft_server.serving.batches import BatchRunner
from graft_server.serving.cleaner import Cleaner
from graft_server.serving.embedder import Embedder
from graft_server.serving.evaluator import Evaluator
from graft_server.serving.guards import CanaryStop, Guards
from graft_server.serving.job_results import JobResults
from graft_server.serving.pins import Pins
from graft_server.serving.predictor import Predictor
from graft_server.serving.presence import Presence
from graft_server.serving.retention import ResponseRetention, Retention
from graft_server.serving.shadows import FOLDER, Shadows
from graft_server.serving.tuning_results import keep_figures
from graft_server.training.device_turns import DeviceTurns
from graft_server.training.memory_budget import check_memory_budget
from graft_server.training.runner import JobRunner

log = logging.getLogger(__name__)

#: Requests of batches in the engine at once at most: a batch needs no more to be fast.
_MOST_PLACES = 64

_ROUTERS = (
    health.router,
    tasks.router,
    datasets.router,
    jobs.router,
    adapters.router,
    aliases.router,
    bundles.router,
    composition.router,
    gc.router,
    routes.router,
    predict.router,
    evaluations.router,
    keys.router,
    models.router,
    chat.router,
    completions.router,
    embeddings.router,
    responses.router,
    files.router,
    batches.router,
    fine_tuning.router,
)


def assemble(settings: Settings, registry: Registry, host: PluginHost, engine: Engine) -> Services:
    """Wire the rooms around an engine; nothing is started."""
    metrics = Metrics(settings.metrics_adapters)
    engine_stats = StatsCache(engine)
    observers = Observers(host)
    gate = Gate(
        slots=settings.max_slots,
        max_running=settings.max_sequences,
        max_queued=settings.max_queued,
        max_queued_per_adapter=settings.max_queued_per_adapter,
        quantum=settings.quantum_tokens,
        turn_seconds=settings.max_turn_seconds,
    )
    turnstile = Turnstile(gate, on_enqueue=engine.prefetch)
    states = StateCache(files=registry.files)
    profiles = ProfileCatalogue(registry, host, states, settings.data_dir / PROFILES)
    auto = AutoRouter(registry, host, profiles, threshold=settings.auto_threshold, below=settings.auto_below)
    resolver = Resolver(registry, host, states, auto, base_name=lambda: base_name(engine, settings))
    guards = Guards(CanaryStop(registry))
    shadows = Shadows(settings.data_dir / FOLDER)
    meter = Meter(
        registry.adapter_limits,
        key_defaults=settings.key_limits,
        adapter_defaults=settings.adapter_limits,
        refused=metrics.rate_limited,
    )
    predictor = Predictor(
        registry=registry,
        resolver=resolver,
        engine=engine,
        turnstile=turnstile,
        observers=observers,
        metrics=metrics,
        meter=meter,
        guards=guards,
        shadows=shadows,
        timeout=settings.request_timeout_seconds,
    )
    pins = Pins(registry, engine, turnstile)
    services = Services(
        settings=settings,
        registry=registry,
        host=host,
        engine=engine,
        engine_stats=engine_stats,
        resolver=resolver,
        predictor=predictor,
        evaluator=Evaluator(predictor, engine, concurrency=settings.max_sequences),
        embedder=Embedder(engine, turnstile, metrics, observers, meter),
        pins=pins,
        profiles=profiles,
        guards=guards,
        shadows=shadows,
        cleaner=Cleaner(registry, pins, predictor.traffic),
        keyring=Keyring(registry),
        meter=meter,
        metrics=metrics,
        observers=observers,
        presence=Presence(registry, predictor.traffic, on_servers=meter.share_among),
    )
    metrics.watch(
        queued=lambda: gate.waiting,
        running=lambda: gate.running,
        restarts=lambda: engine.restarts,
        ready=lambda: services.ready,
        engine=engine_stats,
    )
    return services


def create_app(services: Services) -> FastAPI:
    """The HTTP application over wired services."""
    app = FastAPI(title="graftwork", version=health.VERSION, redirect_slashes=False)
    app.state.services = services
    for router in _ROUTERS:
        app.include_router(router)
    problems.install(app)
    openapi.install(app)
    # The last one added is the outermost.
    limit, documents = (mib * 2**20 for mib in (services.settings.max_body_mib, services.settings.max_json_mib))
    app.add_middleware(middleware.BodyLimit, limit=limit, documents=documents)
    app.add_middleware(access.Access, keyring=services.keyring, meter=services.meter)
    app.add_middleware(middleware.Drain, lifecycle=services.lifecycle)
    app.add_middleware(middleware.RequestContext, metrics=services.metrics)
    return app


def serve(settings: Settings) -> None:
    """Run a server until it is told to stop.

    Raises:
        GraftError: it could not start: the port or the data folder is in use, a newer release wrote the database,
            or the base model can't be loaded.
    """
    configure_logging(settings.log_level, settings.log_format)
    with (
        claimed(settings.data_dir),
        closing(bind(settings.host, settings.port)) as bound,
        asyncio.Runner(loop_factory=new_event_loop) as runner,
    ):
        runner.run(_serve(settings, bound))


async def _serve(settings: Settings, bound: socket.socket) -> None:
    async with AsyncExitStack() as stack:
        # Uploads of a server that was killed; the folder is claimed, so they are nobody else's.
        await asyncio.to_thread(shutil.rmtree, settings.data_dir / UPLOADS, ignore_errors=True)
        try:
            database = settings.database_url
            registry = await asyncio.to_thread(
                Registry.open,
                settings.data_dir,
                database.get_secret_value() if database is not None else None,
                settings.artefacts_url,
                cache_bytes=settings.artefacts_cache_mib << 20,
            )
        except RegistryError as error:
            raise GraftError(str(error)) from error
        stack.push_async_callback(asyncio.to_thread, registry.close)
        host = await asyncio.to_thread(PluginHost.load, only=settings.plugins, extra=server_plugins())
        progress = stack.enter_context(StartupProgress())
        engine = SupervisedEngine(_engine_config(settings), report=progress.report)
        stack.push_async_callback(engine.stop)
        services = assemble(settings, registry, host, engine)
        stack.push_async_callback(asyncio.to_thread, services.observers.close)
        stack.push_async_callback(services.shadows.close)
        url = url_of(bound)
        services.keyring.local_only = is_loopback(bound)
        if not await services.keyring.locked():
            _check_reach(settings, url, local_only=services.keyring.local_only)
        server = HttpServer(
            create_app(services),
            services.lifecycle,
            drain_seconds=settings.drain_seconds,
            on_listening=lambda: write_note(settings.data_dir, url),
        )
        starting = asyncio.create_task(_start(services, stack, progress, url))
        starting.add_done_callback(lambda task: server.drain() if _failed(task) else None)
        await server.serve(sockets=[bound])
        if starting.done():
            starting.result()
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


def _check_reach(settings: Settings, url: str, *, local_only: bool) -> None:
    """Without keys, only this machine may reach the server, unless somebody insists.

    Raises:
        GraftError: it would be open to others.
    """
    if local_only:
        log.info("there are no keys: anyone on this machine can use the server, and nobody else")
    elif settings.insecure:
        log.warning("listening beyond this machine at %s without keys: anyone who can reach it can use it", url)
    else:
        raise GraftError(
            f"{settings.host} can be reached by others and there are no keys: make one with `graft keys create "
            f"--data-dir {settings.data_dir} --name NAME --scope admin`, or insist with --insecure"
        )


async def _start(services: Services, stack: AsyncExitStack, progress: StartupProgress, url: str) -> None:
    """Bring up the engine, the pinned versions and the jobs, while HTTP already answers what it can."""
    settings = services.settings
    try:
        check_memory_budget(settings)
        await services.engine.start()
        base = await asyncio.to_thread(base_model.resolve, settings.base_model, settings.cache_dir)
    except (EngineError, base_model.BaseModelError) as error:
        raise GraftError(str(error)) from error
    await services.pins.restore()
    await asyncio.to_thread(services.profiles.refresh)
    runner = _job_runner(services, base)
    await runner.start()
    stack.push_async_callback(runner.stop)
    services.jobs = runner
    answering = batch_runner(services)
    stack.push_async_callback(answering.stop)
    # First, so that a batch that comes in meanwhile is in neither's blind spot.
    services.batches = answering
    await answering.start()
    if services.registry.has_others:
        stack.push_async_callback(services.presence.leave)
    for task in _background(services, answering):
        stack.callback(task.cancel)
    progress.close()
    sys.stdout.write(f"Serving {base.name} at {url}\n")
    sys.stdout.flush()
    await services.cleaner.collect_objects()


def _background(services: Services, batches: BatchRunner) -> list[asyncio.Task[None]]:
    """What a server does by itself as one of several."""
    settings, registry = services.settings, services.registry
    interval = timedelta(hours=settings.retention_hours)
    responses_age = timedelta(days=settings.response_days)
    tasks = {
        "follower": Follower(registry, services.follow).run(),
        "response-retention": ResponseRetention(registry, age=responses_age, interval=interval).run(),
    }
    if registry.has_others:
        tasks["presence"] = services.presence.run()
        if registry.shares_files:
            tasks["batch-takeover"] = BatchTakeover(registry, batches.begin, gone=settings.batch_takeover_seconds).run()
    if settings.retention_keep is not None:
        retention = Retention(
            registry,
            services.cleaner,
            keep=settings.retention_keep,
            days=settings.retention_days,
            interval=interval,
        )
        tasks["retention"] = retention.run()
    return [asyncio.create_task(work, name=name) for name, work in tasks.items()]


def _job_runner(services: Services, base: base_model.BaseModel) -> JobRunner:
    """The job queue, with its results measured by this server and its news told to plugins."""

    def tell(hook: str, document: VersionInfo | JobInfo) -> None:
        services.observers.tell(hook, document.model_dump(mode="json"))

    def published(version: VersionRecord) -> None:
        tell("version_published", version_info(version))
        # So that no request has to wait for its profile to be made.
        asyncio.get_running_loop().run_in_executor(None, services.profiles.refresh)

    def finished(job: JobRecord) -> None:
        tell("job_finished", job_info(job))
        if job.state is JobState.succeeded:
            asyncio.get_running_loop().run_in_executor(None, keep_figures, services.registry, job)

    return JobRunner(
        services.registry,
        services.host,
        base,
        services.settings,
        evaluate=JobResults(services.host, services.evaluator).evaluate,
        on_published=published,
        on_finished=finished,
        device_turn=DeviceTurns(services.engine).training if services.settings.sleep_while_training else nullcontext,
    )


def batch_runner(services: Services) -> BatchRunner:
    """What answers batches, over the same routes as everybody's requests."""
    return BatchRunner(
        services.registry,
        services.keyring,
        BatchCalls(services),
        partial(read_batch, services.host),
        services.settings.data_dir / BATCHES,
        places=min(services.settings.max_sequences, _MOST_PLACES),
    )


def _failed(task: asyncio.Task[None]) -> bool:
    return not task.cancelled() and task.exception() is not None


def _engine_config(settings: Settings) -> EngineConfig:
    return EngineConfig(
        engine=settings.engine,
        base_model=settings.base_model,
        cache_dir=str(settings.cache_dir),
        device=settings.device,
        dtype=settings.dtype,
        max_slots=settings.max_slots,
        max_rank=settings.max_rank,
        max_batch_tokens=settings.max_batch_tokens,
        max_sequences=settings.max_sequences,
        kv_cache_mib=settings.kv_cache_mib,
        memory=settings.engine_memory,
        sleeps=settings.sleep_while_training,
        cuda_graphs=settings.cuda_graphs,
        host_cache_mib=settings.host_cache_mib,
        plugins=settings.plugins,
    )
