"""The engine contract: what runs the model, seen from the rest of the server.

An engine holds one base model and adapter versions in device slots, and answers requests for different adapters
in the same forward passes. The types here are msgspec structs: they also cross the pipe between the server and
the engine's process. The module imports neither torch nor the API.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length"]


class AdapterSource(msgspec.Struct, frozen=True):
    """An immutable adapter version and where its files lie.

    ``engine_id`` comes from the registry's persisted counter and is never reused: caches are keyed by it.
    """

    ref: str
    engine_id: int
    path: str
    method: str
    rank: int = 0
    digest: str = ""


class ToolCall(msgspec.Struct, frozen=True):
    """A call that the assistant made; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class ChatMessage(msgspec.Struct, frozen=True):
    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class PromptInput(msgspec.Struct, frozen=True):
    """Messages for the base model's chat template, or text taken verbatim, or the base model's tokens.

    ``tools`` are functions for the template to tell of, each as the text of a JSON object in OpenAI's shape.
    """

    messages: tuple[ChatMessage, ...] = ()
    text: str | None = None
    tokens: tuple[int, ...] = ()
    tools: tuple[str, ...] = ()


class SamplingParams(msgspec.Struct, frozen=True):
    """How tokens are drawn and when an answer ends; temperature 0 is greedy.

    Logits are changed in the order of transformers and vLLM: the constraint, ``logit_bias``, ``repetition_penalty``,
    ``frequency_penalty`` and ``presence_penalty``, ``min_tokens``, temperature, top-k, top-p, min-p.

    - ``logprobs``: how many alternatives to report with each token. Log-probabilities are the model's own, within the
      constraint: as they are before everything that follows it.
    - ``repetition_penalty``: divides positive and multiplies negative logits of tokens that stand in the prompt or the
      answer (CTRL: Keskar et al. 2019). ``presence_penalty`` and ``frequency_penalty``: subtracted once, and once an
      occurrence, from the logits of tokens of the answer alone (OpenAI's definition).
    - ``min_p``: keeps tokens at least this share as likely as the likeliest (Nguyen et al. 2024).
    - ``stop``, ``stop_token_ids``: end the answer besides the model's own end, and are no part of its text.
      ``ignore_eos`` leaves the model's own end out.
    - ``min_tokens``: tokens before which nothing ends the answer, except a constraint that is complete.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0


class ConstraintSpec(msgspec.Struct, frozen=True):
    """What the answer must match: one of ``choices``, a ``regex``, or a JSON schema (as JSON text)."""

    kind: Literal["choices", "regex", "json_schema"]
    choices: tuple[str, ...] = ()
    pattern: str = ""
    json_schema: str = ""


class GenerateRequest(msgspec.Struct, frozen=True):
    """``id`` is unique among all requests in flight. ``adapter`` ``None`` is the base model.

    The first token comes at once, later ones in deltas of up to ``tokens_per_delta``: an answer that nobody reads
    before it is whole need not cross the pipe token by token.

    With ``echo`` the first delta has the prompt's own tokens, with as many alternatives as ``sampling.logprobs``, and a
    token that ends the answer is told among the answer's. Such a prompt is computed whole, whatever is cached of it.
    Where ``sampling.max_tokens`` is 0 the prompt is computed, and nothing behind it.
    """

    id: str
    prompt: PromptInput
    sampling: SamplingParams = SamplingParams()
    adapter: AdapterSource | None = None
    constraint: ConstraintSpec | None = None
    tokens_per_delta: int = 1
    echo: bool = False


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token, by its bytes, with its natural-log probability, and the likeliest alternatives at its place. A token may
    be a part of a character."""

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


class EchoedPrompt(msgspec.Struct, frozen=True):
    """A prompt's text and tokens, special ones among them. The ``first`` has nothing in front of it that could make it
    likely; each of the ``others`` has its natural-log probability behind those before it."""

    text: str
    first: bytes
    others: tuple[TokenLogprob, ...]


class Delta(msgspec.Struct, frozen=True):
    """New text of one request. The last delta has ``finish_reason``. A delta is not a token: text waits until
    its bytes are whole and can no longer become a stop string. ``completion_tokens`` are those so far; an engine may
    leave counts out of all deltas but the last."""

    text: str = ""
    tokens: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    queued_seconds: float = 0.0
    prompt: EchoedPrompt | None = None


class ScoreRequest(msgspec.Struct, frozen=True):
    """Likelihoods of ``candidates`` as continuations of ``prompt``, which is computed once: of each with ``ending``
    behind it or, without one, as a whole answer, its end included."""

    id: str
    prompt: PromptInput
    candidates: tuple[str, ...]
    adapter: AdapterSource | None = None
    ending: str | None = None


class Scored(msgspec.Struct, frozen=True):
    """Sum of natural-log probabilities over ``tokens`` tokens of one candidate."""

    logprob: float
    tokens: int


class ScoreResult(msgspec.Struct, frozen=True):
    """In the order of the request's candidates."""

    scores: tuple[Scored, ...]
    prompt_tokens: int
    scored_tokens: int


class Embeddings(msgspec.Struct, frozen=True):
    """``vectors`` in the order of the texts, and the tokens that these have together."""

    vectors: list[list[float]]
    prompt_tokens: int


class Capabilities(msgspec.Struct, frozen=True):
    """What an engine can serve; asked before a job or an adapter is accepted.

    ``otherwise`` says what to do about an adapter that it can't serve; empty where nothing can be done.
    """

    engine: str
    methods: tuple[str, ...]
    max_rank: int
    slots: int
    constraints: tuple[str, ...]
    device: str
    dtype: str
    otherwise: str = ""
    sleeps: bool = False


class ToolSyntax(msgspec.Struct, frozen=True):
    """How the base model writes a call: a JSON object with ``name`` and ``arguments`` (which is the key of these),
    between two marks, which may be empty."""

    opening: str
    closing: str
    arguments: str


class ModelInfo(msgspec.Struct, frozen=True):
    """The base model, as the engine loaded it. ``fingerprint`` is sha256 over its configuration and weights;
    ``tool_syntax`` is ``None`` where its chat template has no tools."""

    name: str
    fingerprint: str
    path: str
    architecture: str
    context_length: int
    parameters: int
    tool_syntax: ToolSyntax | None = None


#: Upper bounds in seconds of the histogram of adapter loads.
LOAD_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class EngineStats(msgspec.Struct, frozen=True):
    """What an engine does now, and what it has counted since its process started.

    ``load_counts`` are the adapter loads by duration: one count for each bound of ``LOAD_SECONDS``, one for the rest.
    """

    running: int = 0
    waiting: int = 0
    loaded: tuple[str, ...] = ()
    slots: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    generated_tokens: int = 0
    tokens_per_second: float = 0.0
    preemptions: int = 0
    reused_tokens: int = 0
    evictions: int = 0
    load_counts: tuple[int, ...] = ()
    load_seconds: float = 0.0


class EngineError(Exception):
    """Base of the engine's errors. ``code`` is stable; the text is one sentence for the caller."""

    code = "engine-error"


class PromptTooLongError(EngineError):
    """Prompt and answer do not fit the model's context."""

    code = "prompt-too-long"


class AdapterLoadError(EngineError):
    """The adapter's files can't be loaded."""

    code = "adapter-unloadable"


class InvalidRequestError(EngineError):
    """The request can't be served as it stands, for instance a regular expression that does not parse."""

    code = "invalid-request"


class EngineDiedError(EngineError):
    """The engine's process ended while the request was being answered, after text had been sent."""

    code = "engine-died"


class EngineUnavailableError(EngineError):
    """The engine is not running, or could not be started."""

    code = "engine-unavailable"


#: States of an engine that is up: it knows its model and holds adapters, also while it is rebuilt or asleep.
UP = frozenset({"ready", "rebuilding", "asleep"})


class Engine(Protocol):
    """What the server calls. Every method may raise an ``EngineError``."""

    @property
    def state(self) -> str:
        """``starting``, ``ready``, ``asleep``, ``rebuilding``, ``stopped`` or ``failed``."""
        ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def model(self) -> ModelInfo: ...

    @property
    def restarts(self) -> int: ...

    @property
    def error(self) -> str | None:
        """Why the state is ``failed`` or ``asleep``, in one sentence."""
        ...

    async def start(self) -> None:
        """Load the base model; returns when requests can be answered."""

    async def stop(self) -> None:
        """End at once; requests in flight fail."""

    async def validate(self, source: AdapterSource) -> None:
        """Check that the files fit the base model, without taking a slot.

        Raises:
            AdapterLoadError: with the file, the tensor or the field at fault.
        """

    async def load(self, source: AdapterSource) -> None:
        """Bring a version into a device slot ahead of its first request (requests do this by themselves)."""

    def prefetch(self, source: AdapterSource) -> None:
        """Begin to read a version into host memory: a request for it is on its way. Never fails; the request will."""

    async def pin(self, source: AdapterSource) -> None:
        """Load a version and keep it in its slot.

        Raises:
            InvalidRequestError: all slots but one are pinned already.
            AdapterLoadError: its files can't be loaded.
        """

    async def unpin(self, engine_id: int) -> None:
        """Let a version leave its slot again when others need it."""

    async def unload(self, engine_id: int) -> None:
        """Forget a version once nothing in flight uses it."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:
        """Deltas until one has a finish reason. Closing the iterator aborts the request."""
        ...

    async def score(self, request: ScoreRequest) -> ScoreResult: ...

    async def embed(self, texts: Sequence[str]) -> Embeddings:
        """Mean-pooled, L2-normalised last hidden states of the base model, ``[len(texts)][hidden]``.

        Raises:
            PromptTooLongError: a text does not fit the context.
        """
        ...

    async def stats(self) -> EngineStats: ...

    async def sleep(self) -> None:
        """Leave the device to others once what is in progress has ended; requests that come now wait for ``wake``.

        Raises:
            InvalidRequestError: this engine can't sleep.
        """

    async def wake(self) -> None:
        """Come back to the device, and answer what has waited."""
