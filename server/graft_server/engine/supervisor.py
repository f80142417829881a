"""The engine seen from the server: a child process that is rebuilt when it dies.

What had streamed nothing is replayed on the new process; what had streamed something ends with an
``EngineDiedError``. The versions that were loaded are loaded again. Deaths in quick succession end in ``failed``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import sys
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from graft_server.children import engine_environment
from graft_server.engine import base, messages
from graft_server.engine.base import (
    AdapterSource,
    Capabilities,
    Delta,
    Embeddings,
    EngineDiedError,
    EngineError,
    EngineStats,
    EngineUnavailableError,
    GenerateRequest,
    ModelInfo,
    ScoreRequest,
    ScoreResult,
)

logger = logging.getLogger(__name__)

PROCESS = "graft_server.engine.process"

#: More deaths than this within the window, and the engine is not started again.
_MOST_DEATHS = 5
_DEATH_WINDOW = 120.0
_ASLEEP = "a training job has the device; requests wait until it has trained"
#: A request that was in flight at this many deaths is not replayed once more: it may be what kills.
_MOST_REPLAYS = 2

_ERRORS: dict[str, type[EngineError]] = {
    error.code: error
    for error in (
        base.PromptTooLongError,
        base.AdapterLoadError,
        base.InvalidRequestError,
        base.EngineUnavailableError,
    )
}


@dataclass(slots=True, eq=False)
class _Call:
    """A message that waits for answers, and the frame to send again if the engine dies before the first."""

    frame: bytes
    answers: asyncio.Queue[messages.FromEngine | EngineError] = field(default_factory=asyncio.Queue)
    #: Sent to an engine that is to sleep or asleep; it is not for a new one if this one dies.
    for_sleeper: bool = False
    sent: bool = False
    answered: bool = False
    deaths: int = 0


class SupervisedEngine:
    """An ``Engine`` in a child process. One event loop owns it."""

    def __init__(
        self, config: messages.EngineConfig, *, report: Callable[[str, float | None], None] | None = None
    ) -> None:
        self._config = config
        self._report = report or (lambda message, fraction: None)
        self._state = "stopped"
        self._error: str | None = None
        self._restarts = 0
        self._deaths: deque[float] = deque()
        self._calls: dict[str, _Call] = {}
        self._loaded: OrderedDict[int, AdapterSource] = OrderedDict()
        self._pinned: dict[int, AdapterSource] = {}
        self._ids = itertools.count(1)
        self._capabilities: Capabilities | None = None
        self._model: ModelInfo | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._asleep = False
        #: What can't be said to a sleeping engine and expects no answer.
        self._held: list[bytes] = []
        #: Set unless a sleeping engine is not to be rebuilt: its device is another's.
        self._may_start = asyncio.Event()
        self._may_start.set()
        self._changed = asyncio.Event()

    @property
    def state(self) -> str:
        return "asleep" if self._asleep and self._state in ("ready", "rebuilding") else self._state

    @property
    def error(self) -> str | None:
        return _ASLEEP if self.state == "asleep" else self._error

    @property
    def restarts(self) -> int:
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The child's process id, for tests and operators."""
        return self._process.pid if self._process else None

    @property
    def capabilities(self) -> Capabilities:
        if self._capabilities is None:
            raise EngineUnavailableError("the engine has not started yet")
        return self._capabilities

    @property
    def model(self) -> ModelInfo:
        if self._model is None:
            raise EngineUnavailableError("the engine has not started yet")
        return self._model

    # Life

    async def start(self) -> None:
        """
        Raises:
            EngineUnavailableError: the base model or the engine can't be started; the text says why.
        """
        self._state = "starting"
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        if not self._ready.is_set():
            ready.cancel()
            raise EngineUnavailableError(self._error or "the engine did not start")

    async def stop(self) -> None:
        self._state = "stopped"
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._fail_all(EngineUnavailableError("the server is stopping"))

    async def _supervise(self) -> None:
        try:
            await self._keep_running()
        except Exception as error:
            logger.exception("the engine is looked after no more; restart the server")
            self._state, self._error = "failed", f"its supervision failed: {error}"
        self._fail_all(EngineUnavailableError(self._error or "the engine has failed"))

    async def _keep_running(self) -> None:
        """Until it has failed."""
        while True:
            await self._may_start.wait()
            try:
                stream = await self._spawn()
            except OSError as error:
                self._state, self._error = "failed", f"the engine's process can't be started: {error}"
                logger.error("%s; restart the server", self._error)
                break
            try:
                await self._receive(stream)
            finally:
                self._ready.clear()
                code = await self._reap()
            if self._state == "failed":
                break
            self._after_death(code)
            if self._state == "failed":
                break

    async def _spawn(self) -> asyncio.StreamReader:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                PROCESS,
                str(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env=engine_environment(),
            )
        ours.setblocking(False)
        reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        self._write(messages.Start(self._config))
        return reader

    async def _reap(self) -> int:
        assert self._process is not None
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        try:
            # The socket has ended, so the process is ending; one that hangs is helped along.
            code = await asyncio.wait_for(self._process.wait(), timeout=3 if self._state != "stopped" else 1)
        except (TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            code = await self._process.wait()
        return code

    async def _receive(self, stream: asyncio.StreamReader) -> None:
        try:
            while True:
                header = await stream.readexactly(messages.HEADER.size)
                body = await stream.readexactly(messages.HEADER.unpack(header)[0])
                self._dispatch(messages.from_engine_decoder.decode(body))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # its end, which _reap explains
        except msgspec.MsgspecError:
            logger.exception("a message of the engine can't be read; it is replaced")

    def _dispatch(self, message: messages.FromEngine) -> None:
        match message:
            case messages.Deltas(items):
                for request_id, delta in items:
                    self._answer(request_id, messages.Deltas([(request_id, delta)]))
            case messages.Progress(text, fraction):
                self._report(text, fraction)
            case messages.Ready(model, capabilities):
                self._on_ready(model, capabilities)
            case messages.StartFailed(text):
                self._state, self._error = "failed", text
            case _:
                self._answer(message.id, message)

    def _answer(self, call_id: str, message: messages.FromEngine) -> None:
        call = self._calls.get(call_id)
        if call is not None:
            call.answered = True
            call.answers.put_nowait(message)

    def _on_ready(self, model: ModelInfo, capabilities: Capabilities) -> None:
        self._model, self._capabilities = model, capabilities
        self._state, self._error = "ready", None
        # Most recently used last, so that the engine's own order is the same again.
        for source in list(self._loaded.values())[-capabilities.slots :]:
            self._write(messages.Load(f"reload-{next(self._ids)}", source))
        for source in self._pinned.values():
            self._write(messages.Pin(f"pin-{next(self._ids)}", source))
        if not self._asleep:
            self._send_waiting()
        self._ready.set()
        self._changed.set()

    def _send_waiting(self) -> None:
        for frame in self._held:
            self._send(frame)
        self._held.clear()
        for call in self._calls.values():
            if not call.sent:
                call.sent = True
                self._send(call.frame)

    def _after_death(self, code: int) -> None:
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        now = time.monotonic()
        self._deaths.append(now)
        while self._deaths and self._deaths[0] < now - _DEATH_WINDOW:
            self._deaths.popleft()
        for call_id, call in list(self._calls.items()):
            call.deaths += call.sent
            call.sent = False
            if call.answered or call.for_sleeper or call.deaths > _MOST_REPLAYS:
                self._end(call_id, EngineDiedError(f"the engine's process ended ({reason}) during the answer"))
        self._held.clear()
        self._changed.set()
        if self._model is None or len(self._deaths) > _MOST_DEATHS:
            self._state = "failed"
            self._error = f"the engine's process ended {len(self._deaths)} times, the last with {reason}"
            logger.error("%s; restart the server", self._error)
            return
        self._restarts += 1
        self._state = "rebuilding"
        logger.warning("the engine's process ended (%s); rebuilding it", reason)

    def _end(self, call_id: str, error: EngineError) -> None:
        call = self._calls.pop(call_id, None)
        if call is not None:
            call.answers.put_nowait(error)

    def _fail_all(self, error: EngineError) -> None:
        self._changed.set()
        for call_id in list(self._calls):
            self._end(call_id, error)

    # Calls

    def _write(self, message: msgspec.Struct) -> None:
        self._send(messages.frame(message))

    def _send(self, frame: bytes) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(frame)

    def _tell(self, message: msgspec.Struct) -> None:
        """Something without an answer; a sleeping engine is told when it wakes."""
        frame = messages.frame(message)
        if self._asleep:
            self._held.append(frame)
        else:
            self._send(frame)

    def _call(self, call_id: str, message: msgspec.Struct, *, for_sleeper: bool = False) -> _Call:
        if self._state in ("stopped", "failed"):
            raise EngineUnavailableError(self._error or "the engine is not running")
        if call_id in self._calls:
            raise base.InvalidRequestError(f"the request id {call_id!r} is in use")
        # First: what can't be said must not be kept, for it could not be said to the next engine either.
        frame = _frame(message)
        call = self._calls[call_id] = _Call(frame, for_sleeper=for_sleeper)
        if self._state == "ready" and (for_sleeper or not self._asleep):
            call.sent = True
            self._send(frame)
        return call

    def _forget(self, call_id: str) -> _Call | None:
        self._changed.set()
        return self._calls.pop(call_id, None)

    async def _next(self, call: _Call) -> messages.FromEngine:
        answer = await call.answers.get()
        if isinstance(answer, EngineError):
            raise answer
        if isinstance(answer, messages.Failed):
            raise _ERRORS.get(answer.code, EngineError)(answer.message)
        return answer

    async def _ask(
        self, message_of: Callable[[str], msgspec.Struct], call_id: str | None = None
    ) -> messages.FromEngine:
        """Send one message and wait for its one answer; an abort follows if the caller goes away."""
        call_id = call_id or f"call-{next(self._ids)}"
        call = self._call(call_id, message_of(call_id))
        try:
            return await self._next(call)
        except asyncio.CancelledError:
            self._write(messages.Abort(call_id))
            raise
        finally:
            self._forget(call_id)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        self._note(request.adapter)
        call = self._call(request.id, messages.Generate(request))
        finished = False
        try:
            while not finished:
                answer = await self._next(call)
                assert isinstance(answer, messages.Deltas)
                for _, delta in answer.items:
                    finished = delta.finish_reason is not None
                    yield delta
        finally:
            if (left := self._forget(request.id)) is not None and left.sent and not finished:
                self._write(messages.Abort(request.id))

    async def score(self, request: ScoreRequest) -> ScoreResult:
        self._note(request.adapter)
        answer = await self._ask(lambda _: messages.ScoreCandidates(request), request.id)
        assert isinstance(answer, messages.CandidatesScored)
        return answer.result

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        answer = await self._ask(lambda call_id: messages.Embed(call_id, tuple(texts)))
        assert isinstance(answer, messages.Embedded)
        return answer.result

    async def validate(self, source: AdapterSource) -> None:
        await self._ask(lambda call_id: messages.Validate(call_id, source))

    async def load(self, source: AdapterSource) -> None:
        self._note(source)
        await self._ask(lambda call_id: messages.Load(call_id, source))

    def prefetch(self, source: AdapterSource) -> None:
        if self.state == "ready":
            self._write(messages.Prefetch(source))

    async def pin(self, source: AdapterSource) -> None:
        # Noted at once, so that an unload meanwhile is the last word; undone where the engine may have pinned in vain.
        known = source.engine_id in self._pinned
        self._pinned[source.engine_id] = source
        try:
            await self._ask(lambda call_id: messages.Pin(call_id, source))
        except (EngineError, asyncio.CancelledError):
            if not known:
                await self.unpin(source.engine_id)
            raise

    async def unpin(self, engine_id: int) -> None:
        self._pinned.pop(engine_id, None)
        self._tell(messages.Unpin(engine_id))

    async def unload(self, engine_id: int) -> None:
        self._loaded.pop(engine_id, None)
        self._pinned.pop(engine_id, None)
        self._tell(messages.Unload(engine_id))

    async def stats(self) -> EngineStats:
        if self.state != "ready":
            return EngineStats()
        answer = await self._ask(messages.AskStats)
        assert isinstance(answer, messages.Stats)
        return answer.stats

    # Sleep

    async def sleep(self) -> None:
        """An engine that dies now is asleep too: it is rebuilt when it is to wake."""
        if not self.capabilities.sleeps:
            raise base.InvalidRequestError(f"the {self.capabilities.engine} engine can't sleep here")
        self._asleep = True
        try:
            # Requests in progress end first; those that come now are held back.
            while self._state != "ready" or any(call.sent for call in self._calls.values()):
                if self._state in ("stopped", "failed"):
                    raise EngineUnavailableError(self._error or "the engine is not running")
                self._changed.clear()
                await self._changed.wait()
            self._may_start.clear()
            with contextlib.suppress(EngineDiedError):
                await self._ask_sleeper(messages.Sleep)
        except BaseException:
            self._wake_up()
            raise

    async def wake(self) -> None:
        """One that can't wake, say because something else has its memory by now, is replaced."""
        try:
            if self._state == "ready":
                await self._ask_sleeper(messages.Wake)
        except EngineDiedError:
            pass
        except EngineError as error:
            logger.error("the engine can't be woken and is replaced: %s", error)
            assert self._process is not None
            self._process.kill()
        self._wake_up()

    async def _ask_sleeper(self, message_of: Callable[[str], msgspec.Struct]) -> None:
        call_id = f"call-{next(self._ids)}"
        try:
            await self._next(self._call(call_id, message_of(call_id), for_sleeper=True))
        finally:
            self._forget(call_id)

    def _wake_up(self) -> None:
        self._asleep = False
        self._may_start.set()
        if self._state == "ready":
            self._send_waiting()

    def _note(self, source: AdapterSource | None) -> None:
        """Remember a version as loaded, for the next engine."""
        if source is not None:
            self._loaded[source.engine_id] = source
            self._loaded.move_to_end(source.engine_id)
            while len(self._loaded) > (self._capabilities.slots if self._capabilities else 1):
                self._loaded.popitem(last=False)


def _frame(message: msgspec.Struct) -> bytes:
    """Raises:
    InvalidRequestError: a number in the message has more than 64 bits.
    UnicodeEncodeError: a text in it has half of a surrogate pair.
    """
    try:
        return messages.frame(message)
    except OverflowError as error:
        raise base.InvalidRequestError("a number in the request has more than 64 bits") from error
