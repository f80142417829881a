"""The way of a request: route, task, admission, engine, task. One direction, for single and streamed answers."""

from __future__ import annotations

import asyncio
import logging
import math
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    ExitStack,
    aclosing,
    asynccontextmanager,
    nullcontext,
)
from dataclasses import dataclass
from typing import TypeVar

from graft_client.schemas.common import Timings, Usage
from graft_client.schemas.predict import PredictRequest, PredictResponse
from graft_plugins.task import CandidateScore, Generate, Generation, Output, Score, Scores
from graft_server.access.lease import guarded
from graft_server.access.principal import current_lease
from graft_server.admission.deadlines import DeadlineError, before
from graft_server.admission.gate import FullError
from graft_server.admission.turnstile import Turnstile
from graft_server.engine.base import (
    UP,
    AdapterSource,
    Delta,
    EchoedPrompt,
    Engine,
    EngineUnavailableError,
    GenerateRequest,
    ScoreRequest,
    TokenLogprob,
)
from graft_server.metrics.by_adapter import Served
from graft_server.observability import Metrics
from graft_server.observers import Observers
from graft_server.problems import ProblemError, as_problem
from graft_server.quotas.meter import Charge, Meter
from graft_server.registry import Registry
from graft_server.registry.reading import hold, with_files
from graft_server.routing.resolver import Resolver, Route, Standby
from graft_server.serving import convert
from graft_server.serving.account import account
from graft_server.serving.cost import estimated_tokens, prompt_tokens
from graft_server.serving.guards import FAULTS, Guards, Outcome, metric_of
from graft_server.serving.pipeline import Parsed, Plan, parse_output, plan_request, replanned, texts_in
from graft_server.serving.shadows import Shadows
from graft_server.serving.traffic import Flight, Traffic

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Answers of fewer tokens say little about the time that one takes.
_MEASURED_TOKENS = 8
#: Problems of a version's files, for which the fallbacks of a route are there.
_NOT_THERE = frozenset({"adapter-unloadable", "artefacts-unavailable"})
#: Tokens that come together where the answer is read whole: few enough that live figures still move.
_WHOLE = 16
#: Seconds that a request's plan may take whatever its deadline is. Where no files are missing it takes milliseconds.
_PLANNING = 2.0
#: The turn of who waits for none.
AT_ONCE: AbstractAsyncContextManager[object] = nullcontext()


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a request is served.

    Its ``timeout`` in seconds is over at ``deadline`` by the event loop's clock; without one it may take for ever.
    ``background`` requests take the places that others leave. ``turn`` is entered when no limit keeps the request back
    any more, and left at its end: who waits for a limit of their own takes nobody's turn.
    """

    timeout: float = math.inf
    deadline: float | None = None
    background: bool = False
    turn: AbstractAsyncContextManager[object] = AT_ONCE

    @property
    def patience(self) -> float:
        """Seconds to wait where a limit is reached, instead of being refused: any time where nobody waits for the
        answer."""
        return math.inf if self.background and self.deadline is None else 0.0


async def in_time(terms: Terms, planning: Awaitable[T]) -> T:
    """What ``planning`` gives, which may have to wait for files.

    Raises:
        ProblemError: ``deadline-exceeded``.
    """
    # What is wrong with a request is told however little time it brings.
    least = asyncio.get_running_loop().time() + _PLANNING
    try:
        return await before(None if terms.deadline is None else max(terms.deadline, least), planning, waiting=True)
    except DeadlineError as error:
        over = f"the request's {terms.timeout:g} s were over before the files of its adapter were here"
        raise ProblemError("deadline-exceeded", f"{over}; give it more time, or send it again soon") from error


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text of a streamed answer."""

    text: str
    tokens: tuple[TokenLogprob, ...] = ()
    prompt: EchoedPrompt | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of every answer."""

    id: str
    route: Route
    parsed: Parsed
    finish_reason: str
    usage: Usage
    timings: Timings
    tokens: tuple[TokenLogprob, ...] = ()
    prompt: EchoedPrompt | None = None

    def document(self) -> PredictResponse:
        return PredictResponse(
            id=self.id,
            adapter=self.route.ref,
            task=self.route.task.name,
            output=self.parsed.output,
            text=self.parsed.text,
            finish_reason=self.finish_reason,
            usage=self.usage,
            timings=self.timings,
            routing=self.route.choice,
        )


@dataclass(slots=True)
class _Progress:
    """What the engine has said so far about one request."""

    flight: Flight
    output: Output | None = None
    finish_reason: str = "stop"
    tokens: tuple[TokenLogprob, ...] = ()
    prompt: EchoedPrompt | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queued: float = 0.0
    first_token: float | None = None
    last_token: float | None = None

    @property
    def token_seconds(self) -> float | None:
        """From one token to the next, on average over the answer so far."""
        if self.first_token is None or self.last_token is None or self.completion_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.completion_tokens - 1)


class Predictor:
    """Answers requests through one engine."""

    def __init__(
        self,
        *,
        registry: Registry,
        resolver: Resolver,
        engine: Engine,
        turnstile: Turnstile,
        observers: Observers,
        metrics: Metrics,
        meter: Meter,
        guards: Guards,
        shadows: Shadows,
        timeout: float = 600.0,
    ) -> None:
        self._timeout = timeout
        self._registry = registry
        self._resolver = resolver
        self._engine = engine
        self._turnstile = turnstile
        self._metrics = metrics
        self._meter = meter
        self._observers = observers
        self._guards = guards
        self._shadows = shadows
        #: Every request in progress, those that are not observed among them.
        self.traffic = Traffic()

    @property
    def queued(self) -> int:
        """Requests that wait to enter the engine."""
        return self._turnstile.gate.waiting

    @property
    def admitted(self) -> int:
        """Requests that have entered the engine."""
        return self._turnstile.gate.running

    def terms(self, timeout: float | None = None, *, background: bool = False) -> Terms:
        """The terms of a request that has arrived now, with the server's timeout unless it brings its own."""
        seconds = timeout or self._timeout
        return Terms(seconds, asyncio.get_running_loop().time() + seconds, background)

    def terms_of(self, request: PredictRequest) -> Terms:
        """The terms that a request asks for, arriving now."""
        return self.terms(request.timeout, background=request.priority == "background")

    async def prepare(self, request: PredictRequest) -> Plan:
        """Route a request and build its prompt.

        Raises:
            ProblemError: unknown names, an input the task refuses, or a faulty plugin.
        """

        def plan() -> Plan:
            text = request.text if request.text is not None else texts_in(request.input)
            route = self._resolver.resolve(request.adapter, request.task, text, key=request.key)
            sampling = request.sampling.model_dump(exclude_none=True)
            if request.sampling.stop is not None:
                sampling["stop"] = tuple(request.sampling.stop)
            return plan_request(route, document=request.input, text=request.text, sampling=sampling)

        return await with_files(self._registry, plan)

    async def predict(self, request: PredictRequest) -> Answer:
        """One request, answered whole."""
        terms = self.terms_of(request)
        return await self.answer(await self.prepare(request), terms)

    @asynccontextmanager
    async def charged(
        self,
        plans: Sequence[Plan],
        *,
        source: AdapterSource | None = None,
        patience: float = 0.0,
        turn: AbstractAsyncContextManager[object] = AT_ONCE,
    ) -> AsyncIterator[Sequence[Charge]]:
        """Count plans of one route as one request of the caller's: a charge for each of them. It waits at a limit that
        lets it in within ``patience`` seconds, and then for its ``turn``.

        Raises:
            ProblemError: ``rate-limited`` or ``beyond-limit``, and none of them may run; or ``unauthorized``, the
                caller's key has ended.
        """
        source = source or convert.adapter_source(plans[0].route.version)
        # Of an engine that does not run nothing is known, and it computes nothing: the request is refused for that.
        up = self._engine.state in UP
        context = self._engine.model.context_length if up else 0
        charges: list[Charge] = []
        # Answers to one prompt share it, as the engine computes it once.
        paid: set[int] = set()
        for plan in plans:
            prompt = prompt_tokens(plan)
            most = estimated_tokens(plan, context)
            charges.append(Charge(prompt, max(0, most - prompt), pays_prompt=id(plan.prompt) not in paid))
            paid.add(id(plan.prompt))
        adapter = source.ref.partition("@")[0] if source else None
        lease = current_lease.get()
        async with AsyncExitStack() as stack:
            with nullcontext() if lease is None else lease.held():
                await stack.enter_async_context(self._meter.charged(adapter, charges, patience=patience))
                await stack.enter_async_context(turn)
            yield charges

    async def answer(
        self,
        plan: Plan,
        terms: Terms,
        *,
        source: AdapterSource | None = None,
        observed: bool = True,
        charge: Charge | None = None,
    ) -> Answer:
        """Run a plan to its end. See ``stream``.

        An answer that the engine died in the middle of is begun anew, once: its caller has seen nothing of it.
        """
        if charge is None:
            async with self.charged([plan], source=source, patience=terms.patience, turn=terms.turn) as (charge,):
                return await self.answer(plan, terms, source=source, observed=observed, charge=charge)
        begun = False
        for last_try in (False, True):
            events = self.stream(plan, terms, source=source, observed=observed, tokens_per_delta=_WHOLE, charge=charge)
            try:
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, Answer):
                            return event
                        begun = True
                break
            except ProblemError as error:
                # Where nothing had come yet, the supervisor has replayed it already.
                if last_try or error.code != "engine-died" or not begun:
                    raise
        raise RuntimeError("a stream ended without an answer")

    def stream(
        self,
        plan: Plan,
        terms: Terms,
        *,
        source: AdapterSource | None = None,
        observed: bool = True,
        tokens_per_delta: int = 1,
        charge: Charge | None = None,
    ) -> AsyncGenerator[Piece | Answer]:
        """Pieces of text as they come, then the answer. Closing the iterator aborts the request, and so does the
        deadline in its ``terms``. Where the route's version can't be loaded, its fallbacks answer, one after the other.

        ``source`` stands in for the route's version where that is not registered yet. Only ``observed`` requests
        are shown to plugins and counted. ``tokens_per_delta`` is how many tokens may come together. Without a
        ``charge`` of ``charged`` it is a request of its own.

        Raises:
            ProblemError: whatever ended the request, the end of its caller's key too; nothing of another kind.
        """
        items = self._stream(plan, terms, source, observed, tokens_per_delta, charge)
        lease = current_lease.get()
        return items if lease is None else guarded(items, lease)

    async def _stream(
        self,
        plan: Plan,
        terms: Terms,
        source: AdapterSource | None,
        observed: bool,
        tokens_per_delta: int,
        charge: Charge | None,
    ) -> AsyncGenerator[Piece | Answer]:
        if charge is None:
            async with (
                self.charged([plan], source=source, patience=terms.patience, turn=terms.turn) as (own,),
                aclosing(self._stream(plan, terms, source, observed, tokens_per_delta, own)) as items,
            ):
                async for item in items:
                    yield item
            return
        current, left = plan, iter(plan.route.fallback)
        while True:
            attempt = self._attempt(current, terms, source, observed, tokens_per_delta, charge)
            begun = False
            try:
                async with aclosing(attempt):
                    async for item in attempt:
                        begun = True
                        if isinstance(item, Answer) and observed and plan.route.shadow is not None:
                            self._shadows.copy(self, plan, item, plan.route.shadow)
                        yield item
                return
            except ProblemError as error:
                if begun or error.code not in _NOT_THERE or (other := await self._fallback(plan, left, terms)) is None:
                    raise
                log.warning("%s could not be loaded, %s answers: %s", current.route.ref, other.route.ref, error)
                current = other
                plan.rerouted.append(other.route)

    async def _fallback(self, plan: Plan, left: Iterator[Standby], terms: Terms) -> Plan | None:
        """The plan for the next one that can be served."""
        for standby in left:
            try:
                return await in_time(terms, self.instead(plan, standby))
            except ProblemError as error:
                if error.code == "deadline-exceeded":
                    raise
                log.warning("fallback %s can't be served: %s", standby.ref, error)
        return None

    async def instead(self, plan: Plan, standby: Standby) -> Plan:
        """The same request for another target of its route.

        Raises:
            ProblemError: it can't be served.
        """
        return await with_files(self._registry, lambda: replanned(plan, standby.route()))

    async def _attempt(
        self,
        plan: Plan,
        terms: Terms,
        source: AdapterSource | None,
        observed: bool,
        tokens_per_delta: int,
        charge: Charge,
    ) -> AsyncGenerator[Piece | Answer]:
        """See ``stream``; by the route's version alone."""
        started = time.monotonic()
        source = source or convert.adapter_source(plan.route.version)
        progress = _Progress(self.traffic.arrive(source.ref if source else "base", started))
        code: str | None = "aborted"
        answer: Answer | None = None
        held = ExitStack()
        try:
            self._require_engine()
            cost = estimated_tokens(plan, self._engine.model.context_length)
            # The engine may read the files again at any time: other adapters push this one out of its memory.
            if source is not None:
                held.enter_context(await before(terms.deadline, hold(self._registry, source), waiting=True))
            async with self._turnstile.enter(
                source, cost, background=terms.background, deadline=terms.deadline
            ) as visit:
                self.traffic.enter(progress.flight)
                progress.queued = visit.waited
                async with aclosing(
                    self._decode(plan, source, started, progress, terms.deadline, tokens_per_delta)
                ) as pieces:
                    async for piece in pieces:
                        yield piece
                if progress.completion_tokens >= _MEASURED_TOKENS:
                    visit.token_seconds = progress.token_seconds
            answer = await self._finish(plan, started, progress)
            code = None
            yield answer
        except DeadlineError as error:
            code = "deadline-exceeded"
            where = "before its turn came" if error.waiting else "before its answer was complete"
            hint = "or send it when less is going on" if error.waiting else "or ask for fewer tokens"
            text = f"the request's {terms.timeout:g} s were over {where}; give it more time, {hint}"
            raise ProblemError(code, text) from error
        except Exception as error:
            if isinstance(error, FullError):
                self._metrics.rejected.inc()
            problem = as_problem(error)
            if problem is None:
                code = "internal"
                raise
            code = problem.code
            raise problem from error
        finally:
            held.close()
            self.traffic.leave(progress.flight)
            if progress.flight.running:
                charge.record(progress.prompt_tokens, progress.completion_tokens)
            if observed:
                ended = time.monotonic()
                self._observe(plan, progress, ended - started, code)
                self._watch(plan.route, answer, ended - started, ended, code)

    def _require_engine(self) -> None:
        match self._engine.state:
            case "starting":
                raise ProblemError("not-ready", "the engine is still starting; try again soon", retry_after=2)
            case "stopped" | "failed":
                raise EngineUnavailableError(self._engine.error or "the engine is not running")
            case _:
                # While it is being rebuilt, the supervisor holds requests back and replays them.
                pass

    async def _decode(
        self,
        plan: Plan,
        source: AdapterSource | None,
        started: float,
        progress: _Progress,
        deadline: float | None,
        tokens_per_delta: int,
    ) -> AsyncGenerator[Piece]:
        prompt = convert.prompt_input(plan.prompt)
        match plan.decoding:
            case Score(candidates=candidates, ending=ending):
                request = ScoreRequest(_new_id(), prompt, candidates, source, ending)
                scored = await before(deadline, self._engine.score(request))
                progress.prompt_tokens = scored.prompt_tokens
                progress.completion_tokens = scored.scored_tokens
                progress.output = Scores(
                    candidates=tuple(
                        CandidateScore(text=text, logprob=score.logprob, tokens=score.tokens)
                        for text, score in zip(candidates, scored.scores, strict=True)
                    )
                )
            case Generate(sampling=sampling, constraint=constraint):
                generation = GenerateRequest(
                    id=_new_id(),
                    prompt=prompt,
                    sampling=convert.sampling_params(sampling),
                    adapter=source,
                    constraint=convert.constraint_spec(constraint),
                    tokens_per_delta=tokens_per_delta,
                    echo=plan.echo,
                )
                texts: list[str] = []
                tokens: list[TokenLogprob] = []
                async with _closing(self._engine.generate(generation)) as deltas:
                    while (delta := await before(deadline, anext(deltas, None))) is not None:
                        now = time.monotonic()
                        progress.last_token = now - started
                        if progress.first_token is None and (delta.text or delta.completion_tokens):
                            progress.first_token = progress.last_token
                        texts.append(delta.text)
                        tokens.extend(delta.tokens)
                        progress.prompt = delta.prompt or progress.prompt
                        progress.prompt_tokens = delta.prompt_tokens or progress.prompt_tokens
                        if delta.completion_tokens:
                            progress.completion_tokens = delta.completion_tokens
                        elif delta.text and not delta.finish_reason:
                            # An engine that counts at the end only: it is one token at least.
                            progress.completion_tokens += 1
                        self.traffic.generated(progress.flight, progress.completion_tokens, now)
                        if delta.text or delta.tokens or delta.prompt is not None:
                            yield Piece(delta.text, delta.tokens, delta.prompt)
                        if delta.finish_reason:
                            progress.finish_reason = delta.finish_reason
                            progress.queued += delta.queued_seconds
                            break
                    else:
                        return  # cut off: what came is no answer
                progress.tokens = tuple(tokens)
                progress.output = Generation(
                    text="".join(texts),
                    finish_reason="length" if progress.finish_reason == "length" else "stop",
                    logprobs=tuple(token.logprob for token in tokens),
                )

    async def _finish(self, plan: Plan, started: float, progress: _Progress) -> Answer:
        output = progress.output
        if output is None:
            raise RuntimeError("the engine ended a request without an answer")
        parsed = await asyncio.to_thread(parse_output, plan, output)
        return Answer(
            id=_new_id(),
            route=plan.route,
            parsed=parsed,
            finish_reason=progress.finish_reason,
            usage=Usage(prompt_tokens=progress.prompt_tokens, completion_tokens=progress.completion_tokens),
            timings=Timings(queued=progress.queued, first_token=progress.first_token, total=time.monotonic() - started),
            tokens=progress.tokens,
            prompt=progress.prompt,
        )

    def _watch(self, route: Route, answer: Answer | None, seconds: float, now: float, code: str | None) -> None:
        """Tell the guards how a request of a route with weights ended, unless the caller or the load ended it."""
        if route.via is None or (code is not None and code not in FAULTS):
            return
        guard = route.via.spec.guard
        metric = metric_of(answer.parsed.output, guard.metric) if answer is not None and guard is not None else None
        self._guards.record(route.via, route.ref, Outcome(now, seconds, code is not None, metric))

    def _observe(self, plan: Plan, progress: _Progress, seconds: float, code: str | None) -> None:
        served = Served(
            adapter=plan.route.version.adapter if plan.route.version else None,
            outcome=code or "ok",
            prompt_tokens=progress.prompt_tokens,
            completion_tokens=progress.completion_tokens,
            # What never entered, or never ended well, would tell of callers' patience instead of the server.
            queued=progress.queued if progress.flight.running else None,
            first_token=progress.first_token,
            per_token=progress.token_seconds,
            total=seconds if code is None else None,
        )
        route = plan.route
        account(self._metrics, self._observers, served, ref=route.ref, task=route.task.name, seconds=seconds)


@asynccontextmanager
async def _closing(deltas: AsyncIterator[Delta]) -> AsyncIterator[AsyncIterator[Delta]]:
    """Abort the engine's request if it is not over; the contract promises an iterator, which may be a generator."""
    try:
        yield deltas
    finally:
        if isinstance(deltas, AsyncGenerator):
            await deltas.aclose()


def _new_id() -> str:
    return uuid.uuid4().hex
