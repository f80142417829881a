"""What a task is: the class that a plugin author subclasses, and the small types it speaks in.

A task turns typed requests into prompts and model output back into typed responses; it reads examples,
splits them without leakage, and measures answers. It is plain Python: no torch, no server, no I/O of its own
beyond what its dataset readers do. The host calls it in one direction only::

    rows --parse_row--> examples --split--> train, test
    train --fit_state--> state            (kept with the adapter, for instance a catalogue)
    train --validation_split--> train, watched
    train --training_pairs--> (prompt, target) pairs
    watched --validation_pairs--> (prompt, target) pairs
    request --prompt, decoding--> engine --output--> parse --> response
    (example, response) pairs --evaluate--> Report
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


TokenId = Annotated[int, Field(ge=0)]


class ToolCall(_Frozen):
    """A call of a function that the model made; ``arguments`` is a JSON object as text."""

    id: str
    name: str
    arguments: str


class Message(_Frozen):
    """One turn of a conversation. Where the base model knows tools, the assistant may have called some, and a turn of
    the role ``tool`` has what came of one."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


class Prompt(_Frozen):
    """What the model reads: messages for the base model's chat template, or text taken verbatim, or the base model's
    tokens themselves.

    Exactly one of the three is set. Give a short system message of your own: many chat templates otherwise add
    a long default one.
    """

    messages: tuple[Message, ...] = ()
    text: str | None = None
    tokens: tuple[TokenId, ...] = ()
    tools: tuple[dict[str, Any], ...] = Field((), description="Functions for the chat template, in OpenAI's shape.")

    @classmethod
    def chat(cls, user: str, *, system: str | None = None) -> Prompt:
        """A single user turn, with an optional system message."""
        head = (Message(role="system", content=system),) if system else ()
        return cls(messages=(*head, Message(role="user", content=user)))


class TrainingPair(_Frozen):
    """A prompt and the answer to learn. The loss is taken on ``target`` only."""

    prompt: Prompt
    target: str


Bias = Annotated[float, Field(ge=-100.0, le=100.0)]


class Sampling(_Frozen):
    """How tokens are drawn and when an answer ends. The defaults are greedy decoding to the model's own end."""

    max_tokens: int = Field(128, ge=1, description="Most tokens to generate.")
    temperature: float = Field(0.0, ge=0.0, le=5.0, description="0 is greedy.")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="Nucleus sampling (Holtzman et al. 2020).")
    top_k: int = Field(0, ge=0, description="Keep the k likeliest tokens; 0 keeps all.")
    seed: int | None = Field(None, description="Makes a sampled answer reproducible.")
    stop: tuple[str, ...] = Field((), max_length=16, description="Strings that end the answer, not returned.")
    logprobs: int | None = Field(None, ge=0, le=20, description="Log-probabilities of this many alternatives.")
    ignore_eos: bool = Field(False, description="Generate on where the model would end its answer.")
    min_p: float = Field(0.0, ge=0.0, le=1.0, description="Least share of the likeliest token's probability.")
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0, description="Over prompt and answer; above 1 discourages.")
    presence_penalty: float = Field(0.0, ge=-2.0, le=2.0, description="Taken from tokens that the answer has.")
    frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0, description="Taken each time that the answer has a token.")
    logit_bias: dict[TokenId, Bias] = Field({}, max_length=1024, description="Added to the logits of tokens, by id.")
    stop_token_ids: tuple[TokenId, ...] = Field((), max_length=64, description="Tokens that end the answer.")
    min_tokens: int = Field(0, ge=0, description="Tokens before which nothing ends the answer.")


class Choices(_Frozen):
    """The answer is one of these strings, exactly."""

    kind: Literal["choices"] = "choices"
    choices: tuple[str, ...] = Field(min_length=1)


class Regex(_Frozen):
    """The answer matches this regular expression as a whole."""

    kind: Literal["regex"] = "regex"
    pattern: str


class JsonSchema(_Frozen):
    """The answer is a JSON document that validates against this schema."""

    kind: Literal["json_schema"] = "json_schema"
    json_schema: dict[str, Any]


Constraint = Annotated[Choices | Regex | JsonSchema, Field(discriminator="kind")]


class Generate(_Frozen):
    """Decode an answer token by token, optionally under a constraint."""

    kind: Literal["generate"] = "generate"
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None


class Score(_Frozen):
    """Score given continuations instead of generating one.

    Each is a whole answer, and that nothing follows it counts as well; with an ``ending``, it is followed by that text
    instead, such as the line end in a list that goes on.
    """

    kind: Literal["score"] = "score"
    candidates: tuple[str, ...] = Field(min_length=1)
    ending: str | None = None


Decoding = Annotated[Generate | Score, Field(discriminator="kind")]


class Generation(_Frozen):
    """A generated answer."""

    text: str
    finish_reason: Literal["stop", "length"] = "stop"
    logprobs: tuple[float, ...] = Field((), description="Natural-log probability of each generated token.")


#: 0 compares log-probabilities as they are, which is right for a model that knows its items; 1 nearly their means over
#: tokens, which lifts long ones. Trained recommenders ranked best between 0 and 0.4.
_LENGTH_EXPONENT = 0.2


class CandidateScore(_Frozen):
    """The likelihood of one candidate."""

    text: str
    logprob: float = Field(description="Sum of the natural-log probabilities of the candidate's tokens.")
    tokens: int = Field(ge=1)

    @property
    def normalised(self) -> float:
        """The log-probability over ``((5 + tokens) / 6) ** 0.2``, so that a long candidate is not punished for its
        length, nor lifted by the easy tokens at its end as a mean over tokens would (Wu et al. 2016, equation 14)."""
        return float(self.logprob / ((5 + self.tokens) / 6) ** _LENGTH_EXPONENT)


class Scores(_Frozen):
    """Scored candidates, in the order they were given."""

    candidates: tuple[CandidateScore, ...]


Output = Generation | Scores


class Metric(_Frozen):
    """One measured figure."""

    value: float
    higher_is_better: bool = True
    signature: str | None = Field(None, description="How it was computed, e.g. sacrebleu's signature.")


class Report(_Frozen):
    """The metrics of one run over held-out rows; ``primary`` names the one to compare by."""

    primary: str
    metrics: dict[str, Metric]
    rows: int

    @property
    def score(self) -> float:
        """The value of the primary metric."""
        return self.metrics[self.primary].value


class Empty(BaseModel):
    """The state of a task that keeps none, and the options of a task that has none."""

    model_config = ConfigDict(extra="forbid")


class RowError(ValueError):
    """A row that is not an example of the task. ``field`` names the offending field where one is known."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class RequestError(ValueError):
    """A request that the task can't serve. The message is shown to the caller as it is."""


ExampleT = TypeVar("ExampleT", bound=BaseModel)
RequestT = TypeVar("RequestT", bound=BaseModel)
ResponseT = TypeVar("ResponseT", bound=BaseModel)
StateT = TypeVar("StateT", bound=BaseModel)


class Split(BaseModel, Generic[ExampleT]):
    """Examples to train on and examples held out."""

    train: list[ExampleT]
    test: list[ExampleT]


class Task(ABC, Generic[ExampleT, RequestT, ResponseT, StateT]):
    """A kind of work that adapters are trained for.

    Subclass it, set the class attributes, write the abstract methods and register an instance through the
    ``register_tasks`` hook. Everything else has a working default.
    """

    #: Lower-case words joined by hyphens; the name on the command line and in the API.
    name: ClassVar[str]
    #: A few words for a listing.
    title: ClassVar[str]
    #: One or two sentences: what goes in, what comes out.
    description: ClassVar[str]

    example_model: type[ExampleT]
    request_model: type[RequestT]
    response_model: type[ResponseT]
    #: What is kept with the adapter and handed back at serving time. ``Empty`` if nothing.
    state_model: type[StateT]

    #: Alternative column names in data files -> field of ``example_model``.
    field_aliases: ClassVar[Mapping[str, str]] = {}
    #: Overrides of the host's training defaults, e.g. ``{"learning_rate": 1e-3, "epochs": 2}``.
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    #: A request to show in help and documentation.
    example_request: ClassVar[Mapping[str, Any]] = {}

    # Data

    def parse_row(self, row: Mapping[str, Any]) -> ExampleT:
        """One raw row of a data file as an example.

        Raises:
            RowError or pydantic.ValidationError: the row is not an example of this task.
        """
        known = {self.field_aliases.get(key, key): value for key, value in row.items() if value is not None}
        return self.example_model.model_validate(known)

    def group_key(self, example: ExampleT) -> str:
        """Examples with the same key are never on both sides of a split. Default: the whole example."""
        return example.model_dump_json()

    def split(self, examples: Sequence[ExampleT], *, test_rows: int, seed: int) -> Split[ExampleT]:
        """Hold out about ``test_rows`` examples, whole groups at a time, the same way for the same seed."""
        groups: dict[str, list[ExampleT]] = {}
        for example in examples:
            groups.setdefault(self.group_key(example), []).append(example)
        # Hash first, so that the order of rows in the file does not decide which are held out.
        keys = sorted(groups, key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
        test: list[ExampleT] = []
        train: list[ExampleT] = []
        for key in keys:
            group = groups[key]
            # The last group always stays for training, so that neither side is empty where two groups exist.
            full = len(test) >= test_rows or (key == keys[-1] and not train)
            (train if full else test).extend(group)
        random.Random(seed).shuffle(train)
        return Split(train=train, test=test)

    def fit_state(self, train: Sequence[ExampleT]) -> StateT:
        """What serving needs to know from the training rows. Default: nothing."""
        return self.state_model()

    def training_pairs(self, train: Sequence[ExampleT], state: StateT) -> Iterator[TrainingPair]:
        """The pairs to learn from. Default: one pair an example."""
        for example in train:
            yield TrainingPair(prompt=self.prompt(self.request_for(example, state), state), target=self.target(example))

    def validation_split(self, train: Sequence[ExampleT], *, validation_rows: int, seed: int) -> Split[ExampleT]:
        """Set about ``validation_rows`` of the training examples aside, to watch the loss on while training. Default:
        as ``split`` does."""
        return self.split(train, test_rows=validation_rows, seed=seed)

    def validation_pairs(self, watched: Sequence[ExampleT], state: StateT) -> Iterator[TrainingPair]:
        """The pairs to take the loss on, of examples that were set aside or that a user gives for it; none of what
        training learns may be in their targets. Default: ``training_pairs``."""
        return self.training_pairs(watched, state)

    # Serving

    @abstractmethod
    def request_for(self, example: ExampleT, state: StateT) -> RequestT:
        """The request that a user would send to get this example's answer."""

    @abstractmethod
    def target(self, example: ExampleT) -> str:
        """The answer to learn for an example."""

    @abstractmethod
    def prompt(self, request: RequestT, state: StateT) -> Prompt:
        """What the model reads for a request."""

    def decoding(self, request: RequestT, state: StateT) -> Generate | Score:
        """How the answer is found. Default: greedy generation.

        Raises:
            RequestError: the request can't be answered.
        """
        return Generate()

    @abstractmethod
    def parse(self, request: RequestT, output: Output, state: StateT) -> ResponseT:
        """The model's output as a typed response."""

    @abstractmethod
    def request_from_text(self, text: str) -> RequestT:
        """A request from plain text, as typed on a command line.

        Raises:
            RequestError: the text can't be read as a request.
        """

    def request_from_messages(self, messages: Sequence[Message]) -> RequestT | None:
        """A request from a conversation. Default: the last user turn as text.

        ``None`` means: the messages are the prompt, as they are.
        """
        for message in reversed(messages):
            if message.role == "user":
                return self.request_from_text(message.content)
        raise RequestError("the conversation has no user message")

    @abstractmethod
    def text_of(self, response: ResponseT) -> str:
        """The response as plain text, for a terminal or a chat client."""

    # Measuring

    @abstractmethod
    def evaluate(self, pairs: Sequence[tuple[ExampleT, ResponseT]], state: StateT) -> Report:
        """Metrics over held-out examples and the responses given to them."""

    def baselines(self, test: Sequence[ExampleT], state: StateT) -> dict[str, Report]:
        """Reports of simple baselines to stand beside the model's, e.g. random and popularity."""
        return {}


#: A task whose type parameters do not matter to the holder.
AnyTask = Task[Any, Any, Any, Any]
