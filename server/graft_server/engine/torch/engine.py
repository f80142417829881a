"""The torch engine: a loop of steps over the scheduler, the model and the requests in progress.

One thread owns it. ``submit_*``, ``abort`` and the adapter calls change state between steps; ``step`` computes one
forward pass and reports what came of it through an ``Events`` sink.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from graft_plugins.method import AdapterMethod
from graft_server.base_model.device import choose_device, choose_dtype
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.base_model.prompt import stop_token_ids
from graft_server.base_model.source import BaseModel
from graft_server.engine.adapter_files import fetch_files, read_grafts
from graft_server.engine.base import (
    AdapterSource,
    Capabilities,
    Delta,
    EngineError,
    EngineStats,
    GenerateRequest,
    InvalidRequestError,
    PromptInput,
    ScoreRequest,
)
from graft_server.engine.events import Events
from graft_server.engine.inputs import Inputs
from graft_server.engine.integrity import require
from graft_server.engine.messages import EngineConfig
from graft_server.engine.slots import Slots
from graft_server.engine.token_bytes import TokenBytes
from graft_server.engine.token_rate import TokenRate
from graft_server.engine.torch import constraints
from graft_server.engine.torch.answers import Answer, PromptReading, Scoring
from graft_server.engine.torch.embeddings import Embedder
from graft_server.engine.torch.host_cache import HostCache
from graft_server.engine.torch.loader import AdapterLoader
from graft_server.engine.torch.reading import Pieces
from graft_server.engine.torch.resident import ResidentAdapter, make_resident
from graft_server.engine.torch.runner import ModelRunner
from graft_server.engine.torch.sampler import Draw, Drawn, sample
from graft_server.engine.torch.scheduler import Scheduler
from graft_server.engine.torch.sequence import BASE, Sequence
from graft_server.engine.torch.text import TextStream

Work = Answer | Scoring


class TorchEngine:
    """A base model, the adapters in its slots and the requests in progress."""

    def __init__(
        self, base: BaseModel, config: EngineConfig, methods: Mapping[str, AdapterMethod], events: Events
    ) -> None:
        device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, device)
        self.base = base
        self.config = config
        self.tokenizer = load_tokenizer(base)
        self._token_bytes = TokenBytes(self.tokenizer)
        model = load_model(base, dtype=self.dtype, device=device)
        self.runner = ModelRunner(model, kv_cache_bytes=config.kv_cache_mib << 20, cuda_graphs=config.cuda_graphs)
        self.scheduler = Scheduler(
            self.runner.pool, max_batch_tokens=config.max_batch_tokens, max_sequences=config.max_sequences
        )
        self.slots = Slots(config.max_slots)
        self.loader = AdapterLoader(
            slots=self.slots,
            host=HostCache(config.host_cache_mib << 20),
            fetch=fetch_files,
            read=self._read,
            place=self._place,
            displace=self._displace,
        )
        self.capabilities = Capabilities(
            engine="torch",
            methods=tuple(sorted(methods)),
            max_rank=config.max_rank,
            slots=config.max_slots,
            constraints=constraints.KINDS,
            device=str(self.runner.device),
            dtype=self.dtype,
        )
        self._methods = methods
        self._events = events
        self._stop_tokens = stop_token_ids(self.tokenizer, model.generation_config)
        vocabulary, pool = int(model.config.get_text_config().vocab_size), self.runner.pool
        self._inputs = Inputs(
            self.tokenizer,
            context_length=base.context_length,
            cache_tokens=pool.total * pool.block_size,
            vocabulary=vocabulary,
        )
        self._constraints = constraints.ConstraintCompiler(self.tokenizer, vocabulary, self._stop_tokens)
        self._embedder = Embedder(self.runner, self._encode_text, events, max_batch_tokens=config.max_batch_tokens)
        self._work: dict[str, Work] = {}
        #: Requests whose adapter is not in a slot yet, in order of arrival, and adapters being read.
        self._for_adapter: dict[int, list[Work]] = {}
        self._load_waiters: dict[int, list[str]] = {}
        self._refs: dict[int, str] = {}
        self._leaving: set[int] = set()
        #: Tokens that were drawn and not reported yet.
        self._untold: list[tuple[Answer, Drawn]] = []
        #: Whether tokens are reported while the next step is computed: a GPU does that by itself.
        self.tells_behind = self.runner.device.type == "cuda"
        #: How long the last step took.
        self._step_seconds = 0.0
        self._rate = TokenRate()

    @property
    def idle(self) -> bool:
        """Nothing to compute or to report; an adapter may still be being read."""
        return self.scheduler.idle and self._embedder.idle and not self._untold

    @property
    def busy_loading(self) -> bool:
        """An adapter is being read, or waits for a slot."""
        return self.loader.busy

    # Requests

    def submit(self, request: GenerateRequest | ScoreRequest) -> None:
        """Take a request; everything that comes of it, errors included, goes to the events."""
        try:
            if request.id in self._work:
                raise InvalidRequestError(f"the request id {request.id!r} is in use")
            work = self._answer(request) if isinstance(request, GenerateRequest) else self._scoring(request)
        except EngineError as error:
            self._events.error(request.id, error)
            return
        self._work[request.id] = work
        if request.adapter is None:
            self.scheduler.add(work.sequence)
            return
        self._for_adapter.setdefault(request.adapter.engine_id, []).append(work)
        self._leaving.discard(request.adapter.engine_id)
        self._know(request.adapter)
        if request.adapter.engine_id in self.slots:
            self._start_waiting(request.adapter.engine_id)
        else:
            self.loader.want(request.adapter, urgent=True)

    def abort(self, request_id: str) -> None:
        """Forget a request, wherever it is; nothing more is reported of it."""
        self._untold = [(answer, drawn) for answer, drawn in self._untold if answer.request.id != request_id]
        self._embedder.abort(request_id)
        work = self._work.pop(request_id, None)
        if work is None:
            return
        adapter = work.sequence.adapter
        waiting = self._for_adapter.get(adapter, [])
        if work in waiting:
            waiting.remove(work)
            if not waiting:
                del self._for_adapter[adapter]
                self._nobody_waits(adapter)
            return
        self.scheduler.finish(work.sequence)
        self._release(adapter)

    def _answer(self, request: GenerateRequest) -> Answer:
        tokens = self._inputs.prompt(request.prompt)
        room = self._inputs.room(len(tokens))
        sampling = request.sampling
        self._inputs.check_sampling(sampling)
        stop_tokens = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else self._stop_tokens)
        matcher = None if request.constraint is None else self._constraints.compile(request.constraint)
        sequence = Sequence(request.id, _adapter_id(request), tokens)
        reading = None
        if request.echo:
            reading = PromptReading(self.tokenizer, self._token_bytes, tokens, sampling.logprobs or 0)
            sequence.logits_at = frozenset(range(len(tokens)))
        return Answer(
            request=request,
            sequence=sequence,
            prompt_tokens=len(tokens),
            max_tokens=min(sampling.max_tokens, room),
            stop_tokens=stop_tokens,
            token_bytes=self._token_bytes,
            draw=Draw(sampling, prompt=tokens, ends=stop_tokens),
            text=TextStream(self.tokenizer, sampling.stop),
            matcher=matcher,
            reading=reading,
        )

    def _scoring(self, request: ScoreRequest) -> Scoring:
        candidates = self._inputs.candidates(request)
        tokens = self._inputs.prompt(request.prompt)
        work = Scoring(request, Sequence(request.id, _adapter_id(request), tokens), candidates)
        inputs = self._inputs
        if len(tokens) + max(map(len, candidates)) > inputs.context_length or work.longest > inputs.cache_tokens:
            raise inputs.too_long(len(tokens))
        return work

    # Adapters

    def load(self, request_id: str, source: AdapterSource) -> None:
        """Bring a version into a slot; ``done`` or ``error`` is reported for ``request_id``."""
        self._leaving.discard(source.engine_id)
        if source.engine_id in self.slots:
            self._events.done(request_id)
            return
        self._load_waiters.setdefault(source.engine_id, []).append(request_id)
        self._know(source)
        self.loader.want(source)

    def prefetch(self, source: AdapterSource) -> None:
        """Read a version into host memory, since a request for it is on its way."""
        self.loader.fetch_ahead(source)

    def pin(self, request_id: str, source: AdapterSource) -> None:
        """Load a version and keep it in its slot; ``done`` or ``error`` is reported for ``request_id``."""
        try:
            self.slots.pin(source.engine_id)
        except LookupError as error:
            hint = "unpin another version, or raise max_slots"
            self._events.error(request_id, InvalidRequestError(f"{source.ref} can't be pinned: {error}; {hint}"))
            return
        self.load(request_id, source)

    def unpin(self, engine_id: int) -> None:
        """Let a version leave its slot again when others need it."""
        self.slots.unpin(engine_id)

    def validate(self, request_id: str, source: AdapterSource) -> None:
        """Read and check a version's files beside the steps, without a slot."""

        def report(error: EngineError | None) -> None:
            if error is None:
                self._events.done(request_id)
            else:
                self._events.error(request_id, error)

        self.loader.check(source, report)

    def unload(self, engine_id: int) -> None:
        """Forget a version now, or as soon as nothing in flight uses it."""
        self.slots.unpin(engine_id)
        if self._is_awaited(engine_id) or self.slots.in_use(engine_id):
            self._leaving.add(engine_id)
        else:
            self._forget(engine_id)

    def poll_adapters(self) -> None:
        """Between steps: read adapters on, and take in those that are ready."""
        step_seconds = None if self.scheduler.idle else self._step_seconds
        for source, error in self.loader.poll(step_seconds=step_seconds):
            self._fail_load(source, error)

    def _know(self, source: AdapterSource) -> None:
        self._refs[source.engine_id] = source.ref

    def _read(self, source: AdapterSource) -> Pieces:
        grafts = read_grafts(source, self._methods, self.runner.model, max_rank=self.config.max_rank)
        return make_resident(grafts, dtype=self.runner.dtype)

    def _place(self, engine_id: int, adapter: ResidentAdapter) -> None:
        self.runner.mixer.add(engine_id, adapter.to(self.runner.device))
        self._start_waiting(engine_id)
        for request_id in self._load_waiters.pop(engine_id, []):
            self._events.done(request_id)
        self._leave_if_unused(engine_id)

    def _displace(self, engine_id: int) -> None:
        self.runner.mixer.remove(engine_id)
        del self._refs[engine_id]

    def _fail_load(self, source: AdapterSource, error: EngineError) -> None:
        self.slots.unpin(source.engine_id)
        for request_id in self._load_waiters.pop(source.engine_id, []):
            self._events.error(request_id, error)
        for work in self._for_adapter.pop(source.engine_id, []):
            del self._work[work.request.id]
            self._events.error(work.request.id, error)
        self._forget(source.engine_id)

    def _is_awaited(self, engine_id: int) -> bool:
        return engine_id in self._for_adapter or engine_id in self._load_waiters

    def _nobody_waits(self, engine_id: int) -> None:
        """The last request that waited for an adapter has gone: it need not come any more."""
        if self._is_awaited(engine_id):
            return
        self.loader.give_up(engine_id)
        self._refs.pop(engine_id, None)
        self._leave_if_unused(engine_id)

    def _leave_if_unused(self, engine_id: int) -> None:
        """Forget a version that was unloaded while it was needed, once it is not."""
        if engine_id in self._leaving and not self._is_awaited(engine_id) and not self.slots.in_use(engine_id):
            self._forget(engine_id)

    def _forget(self, engine_id: int) -> None:
        self._leaving.discard(engine_id)
        self.loader.forget(engine_id)
        self._refs.pop(engine_id, None)

    def _start_waiting(self, engine_id: int) -> None:
        """Start the requests of an adapter that is in its slot: from now on it can't be evicted before they end."""
        for work in self._for_adapter.pop(engine_id, []):
            self.slots.acquire(engine_id)
            self.scheduler.add(work.sequence)

    def _release(self, engine_id: int) -> None:
        if engine_id == BASE:
            return
        self.slots.release(engine_id)
        self._leave_if_unused(engine_id)

    # Steps

    def step(self) -> None:
        """One forward pass over what the scheduler picks, behind one over texts to embed where there are any."""
        self._embedder.step()
        chunks = self.scheduler.schedule(reserved=self._embedder.awaited_blocks)
        if not chunks:
            self._tell_all()
            return
        now = time.monotonic()
        for chunk in chunks:
            work = self._work[chunk.sequence.id]
            if isinstance(work, Answer) and work.started is None:
                work.started = now
        wanted, logits = self.runner.forward(chunks)
        self._tell_all()
        self.scheduler.advance(chunks)
        answers: list[tuple[int, Answer]] = []
        read: list[Answer] = []
        readings: dict[str, tuple[PromptReading, list[int], list[int]]] = {}
        scorings: dict[str, tuple[Scoring, list[int], list[int]]] = {}
        for row, (chunk, token_index) in enumerate(wanted):
            work = self._work[chunk.sequence.id]
            if isinstance(work, Scoring):
                _, rows, indices = scorings.setdefault(work.request.id, (work, [], []))
            elif work.reading is not None and token_index < work.prompt_tokens - 1:
                _, rows, indices = readings.setdefault(work.request.id, (work.reading, [], []))
            elif work.max_tokens == 0:
                read.append(work)
                continue
            else:
                answers.append((row, work))
                continue
            rows.append(row)
            indices.append(token_index)
        for reading, rows, indices in readings.values():
            reading.take(indices, logits[rows])
        for answer in read:
            self._finish(answer)
            self._events.delta(answer.request.id, answer.end())
        if answers:
            self._take_tokens(answers, logits)
        for scoring, rows, indices in scorings.values():
            result = scoring.take(indices, logits[rows])
            if result is not None:
                self._finish(scoring)
                self._events.scored(scoring.request.id, result)
        self._step_seconds = time.monotonic() - now

    def _take_tokens(self, answers: list[tuple[int, Answer]], logits: torch.Tensor) -> None:
        rows = [row for row, _ in answers]
        picked = logits if rows == list(range(len(logits))) else logits[rows]
        picked = picked.float()
        constrained = [(i, answer.matcher) for i, (_, answer) in enumerate(answers) if answer.matcher is not None]
        if constrained:
            self._constraints.mask(picked, constrained)
        for (_, answer), drawn in zip(answers, sample(picked, [a.draw for _, a in answers]), strict=True):
            answer.advance(drawn)
            if answer.tells_at_once:
                self._tell(answer, drawn)
                continue
            if answer.ended:
                self._finish(answer)
            self._untold.append((answer, drawn))
        if not self.tells_behind or self.scheduler.idle:
            self._tell_all()
        self._rate.add(len(answers))

    def _tell_all(self) -> None:
        """Report what was drawn and is not reported yet."""
        if not self._untold:
            return
        for answer, drawn in self._untold:
            self._report(answer, answer.tell(drawn))
        self._untold.clear()
        if self.tells_behind:
            self._events.flush()

    def _tell(self, answer: Answer, drawn: Drawn) -> None:
        """Report a token of an answer that may end by what it says."""
        delta = answer.tell(drawn)
        fault = None if answer.matcher is None else answer.matcher.fault
        if answer.ended or fault is not None:
            self._finish(answer)
        if fault is not None:
            error = InvalidRequestError(f"the constraint can't be followed to the end of the answer: {fault}")
            self._events.error(answer.request.id, error)
            return
        self._report(answer, delta)

    def _report(self, answer: Answer, delta: Delta) -> None:
        if delta.text or delta.tokens or delta.prompt is not None or delta.finish_reason is not None:
            self._events.delta(answer.request.id, delta)

    def _finish(self, work: Work) -> None:
        del self._work[work.request.id]
        self.scheduler.finish(work.sequence)
        self._release(work.sequence.adapter)

    # The rest

    def embed(self, request_id: str, texts: tuple[str, ...]) -> None:
        """Queue texts; their vectors, or the error of one of them, go to the events."""
        self._embedder.add(request_id, texts)

    def _encode_text(self, text: str) -> list[int]:
        tokens = self._inputs.prompt(PromptInput(text=text))
        if len(tokens) > self._inputs.longest:
            raise self._inputs.too_long(len(tokens))
        return tokens

    def stats(self) -> EngineStats:
        pool = self.runner.pool
        waiting = len(self.scheduler.waiting) + sum(map(len, self._for_adapter.values()))
        return EngineStats(
            running=len(self.scheduler.running),
            waiting=waiting,
            loaded=tuple(self._refs[i] for i in self.slots.ids()),
            slots=self.slots.total,
            kv_blocks_used=pool.used,
            kv_blocks_total=pool.total,
            generated_tokens=self._rate.total,
            tokens_per_second=self._rate.per_second,
            preemptions=self.scheduler.preemptions,
            reused_tokens=self.scheduler.reused_tokens,
            evictions=self.slots.evictions,
            load_counts=tuple(self.loader.loads.counts),
            load_seconds=self.loader.loads.sum,
        )

    def check_integrity(self) -> None:
        """Check that an engine at rest holds nothing for requests that are gone.

        Raises:
            IntegrityError: it does; the text says what.
        """
        pool, slots = self.runner.pool, self.slots
        for books in (pool, slots, self.loader, self.runner.mixer):
            books.check_integrity()
        require(self.idle and not self.busy_loading, "the engine is at work")
        require(pool.used == 0, f"{pool.used} KV blocks are in use")
        in_use = [engine_id for engine_id in slots.ids() if slots.in_use(engine_id)]
        require(not in_use, f"the slots of adapters {in_use} are in use")
        require(not self._untold, f"{len(self._untold)} tokens are not reported")
        require(not self._work, f"requests {list(self._work)} are left behind")
        awaited = {*self._for_adapter, *self._load_waiters}
        require(not awaited, f"somebody waits for adapters {awaited}, which nobody reads")
        require(not self._leaving, f"adapters {self._leaving} were to leave and are still here")
        loaded = set(slots.ids())
        require(self.runner.mixer.adapters.keys() == loaded, "the adapters in device memory are not those in slots")
        require(slots.pinned <= loaded, f"adapters {slots.pinned - loaded} are pinned and in no slot")
        require(self._refs.keys() == loaded, f"the names of adapters {self._refs.keys() ^ loaded} are left or lost")

    def close(self) -> None:
        self.loader.close()


def _adapter_id(request: GenerateRequest | ScoreRequest) -> int:
    return BASE if request.adapter is None else request.adapter.engine_id
