"""The engine's own process: ``python -m graft_server.engine.process FD``, where ``FD`` is its end of a socket pair.

Three threads: one reads messages, one writes them (a slow server never stalls a step), and the main one runs the
engine. The process ends when the socket does, so that it never outlives its server.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from graft_server.engine import messages
from graft_server.engine.base import (
    Delta,
    Embeddings,
    EngineError,
    EngineUnavailableError,
    InvalidRequestError,
    ModelInfo,
    ScoreResult,
)
from graft_server.engine.integrity import IntegrityError

logger = logging.getLogger(__name__)

#: How long the main thread sleeps while only an adapter is being read.
_LOADING_POLL = 0.002
#: Seconds between two checks of an engine that comes to rest again and again.
_CHECK_EVERY = 1.0


class Outbox:
    """The engine's events as messages; the deltas of one step travel together."""

    def __init__(self, connection: socket.socket) -> None:
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._deltas: list[tuple[str, Delta]] = []
        self._connection = connection
        self._thread = threading.Thread(target=self._write, name="outbox", daemon=True)
        self._thread.start()

    def send(self, message: msgspec.Struct) -> None:
        self._queue.put(messages.frame(message))

    def delta(self, request_id: str, delta: Delta) -> None:
        self._deltas.append((request_id, delta))

    def flush(self) -> None:
        """Send the deltas gathered so far."""
        if self._deltas:
            self.send(messages.Deltas(self._deltas))
            self._deltas = []

    def scored(self, request_id: str, result: ScoreResult) -> None:
        self.send(messages.CandidatesScored(request_id, result))

    def embedded(self, request_id: str, result: Embeddings) -> None:
        self.send(messages.Embedded(request_id, result))

    def done(self, request_id: str) -> None:
        self.send(messages.Done(request_id))

    def error(self, request_id: str, error: EngineError) -> None:
        self.send(messages.Failed(request_id, error.code, str(error)))

    def close(self) -> None:
        """Write what is queued, then end."""
        self._queue.put(None)
        self._thread.join(timeout=5)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._queue.get()) is not None:
                self._connection.sendall(data)


def _read(connection: socket.socket, inbox: queue.SimpleQueue[messages.ToEngine | None]) -> None:
    try:
        with contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while header := stream.read(messages.HEADER.size):
                body = stream.read(messages.HEADER.unpack(header)[0])
                inbox.put(messages.to_engine_decoder.decode(body))
    except (msgspec.MsgspecError, struct.error):
        # Whoever can't be understood can't be served: the server makes a new engine.
        logger.exception("a message of the server can't be read; the engine ends")
    inbox.put(None)
    # A step, or a base model being read, may take long: nobody waits for it any more.
    threading.Timer(2.0, os._exit, args=(0,)).start()


def start_engine(config: messages.EngineConfig, outbox: Outbox) -> Any:
    """Find and load the base model and announce the engine.

    Raises:
        EngineError, BaseModelError: what to tell the person who started the server.
    """
    from graft_plugins.manager import PluginHost
    from graft_server.base_model import resolve
    from graft_server.base_model.device import choose_device, limit_memory
    from graft_server.base_model.tool_syntax import tool_syntax
    from graft_server.engine.vllm.versions import check_version, default_engine
    from graft_server.plugins import server_plugins

    def report(message: str, fraction: float | None) -> None:
        outbox.send(messages.Progress(message, fraction))

    chosen = default_engine(choose_device(config.device)) if config.engine == "auto" else config.engine
    if chosen == "vllm":
        check_version()
    elif config.sleeps:
        raise EngineUnavailableError(
            'the torch engine can\'t sleep; set engine = "vllm", or leave out sleep_while_training'
        )
    # Where `native` and Triton keep what they have compiled, in vLLM's own process too.
    os.environ["GRAFT_CACHE"] = config.cache_dir
    os.environ.setdefault("TRITON_CACHE_DIR", str(Path(config.cache_dir).expanduser() / "triton"))
    base = resolve(config.base_model, Path(config.cache_dir), report)
    report(f"loading {base.name}", None)
    host = PluginHost.load(config.plugins, extra=server_plugins())
    engine: Any
    if chosen == "vllm":
        from graft_server.engine.vllm.engine import VllmEngine

        engine = VllmEngine(base, config, host.methods, outbox)
    else:
        from graft_server.engine.torch.engine import TorchEngine

        limit_memory(choose_device(config.device), config.memory)
        engine = TorchEngine(base, config, host.methods, outbox)
    model = ModelInfo(
        name=base.name,
        fingerprint=base.fingerprint,
        path=str(base.path),
        architecture=base.architecture,
        context_length=base.context_length,
        parameters=base.parameters,
        tool_syntax=tool_syntax(engine.tokenizer),
    )
    outbox.send(messages.Ready(model, engine.capabilities))
    return engine


def handle(engine: Any, message: messages.ToEngine, outbox: Outbox) -> None:
    """One message from the server, between two steps."""
    match message:
        case messages.Generate(request) | messages.ScoreCandidates(request):
            engine.submit(request)
        case messages.Abort(request_id):
            engine.abort(request_id)
        case messages.Load(request_id, source):
            engine.load(request_id, source)
        case messages.Validate(request_id, source):
            engine.validate(request_id, source)
        case messages.Prefetch(source):
            engine.prefetch(source)
        case messages.Pin(request_id, source):
            engine.pin(request_id, source)
        case messages.Unpin(engine_id):
            engine.unpin(engine_id)
        case messages.Unload(engine_id):
            engine.unload(engine_id)
        case messages.Sleep(request_id):
            engine.sleep(request_id)
        case messages.Wake(request_id):
            engine.wake(request_id)
        case messages.AskStats(request_id):
            outbox.send(messages.Stats(request_id, engine.stats()))
        case messages.Embed(request_id, texts):
            engine.embed(request_id, texts)
        case messages.Start():
            raise InvalidRequestError("the engine has started already")


class RestChecks:
    """Checks an engine's books when it comes to rest, not too often. A breach is logged, for whoever mends the engine;
    it goes on, since what it answers is not wrong for that."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._due = time.monotonic()

    def at_rest(self) -> None:
        """Call this whenever nothing is left to do."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _CHECK_EVERY
        try:
            self._engine.check_integrity()
        except IntegrityError as error:
            logger.error("the engine's books don't balance: %s", error)


def run(engine: Any, inbox: queue.SimpleQueue[messages.ToEngine | None], outbox: Outbox) -> None:
    """Steps while there is work, messages in between, until the server closes the socket."""
    checks = RestChecks(engine)
    while True:
        while True:
            busy = not engine.idle
            if not busy and not engine.busy_loading:
                checks.at_rest()
            try:
                # Idle without a load: sleep until a message comes. Busy: take what is there.
                timeout = _LOADING_POLL if engine.busy_loading else None
                message = inbox.get_nowait() if busy else inbox.get(timeout=timeout)
            except queue.Empty:
                break
            if message is None:
                return
            handle(engine, message, outbox)
            if not busy:
                break
        engine.poll_adapters()
        engine.step()
        outbox.flush()


def main() -> None:
    # The server decides when to end; a Ctrl-C on the terminal reaches this process too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    inbox: queue.SimpleQueue[messages.ToEngine | None] = queue.SimpleQueue()
    outbox = Outbox(connection)
    threading.Thread(target=_read, args=(connection, inbox), name="inbox", daemon=True).start()
    first = inbox.get()
    if not isinstance(first, messages.Start):
        return
    from graft_server.base_model import BaseModelError

    try:
        engine = start_engine(first.config, outbox)
    except (EngineError, BaseModelError) as error:
        outbox.send(messages.StartFailed(str(error)))
        outbox.close()
        sys.exit(1)
    try:
        if engine.capabilities.engine == "vllm":
            from graft_server.engine.vllm import loop

            checks = RestChecks(engine)
            work = loop.run(engine, inbox, lambda message: handle(engine, message, outbox), checks)
            engine.runner.run(work)
        else:
            run(engine, inbox, outbox)
    finally:
        engine.close()
        outbox.close()


if __name__ == "__main__":
    main()
