"""Question answering over one domain: an FAQ, a handbook, a body of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator

from graft_plugins.hookspecs import hookimpl
from graft_plugins.metrics import chrf, exact_match, mean, squad_normalise, token_f1
from graft_plugins.task import (
    AnyTask,
    Empty,
    Generate,
    Generation,
    Metric,
    Output,
    Prompt,
    Report,
    RequestError,
    Sampling,
    Task,
)


class QaExample(BaseModel):
    """A question with one or more accepted answers. The first answer is the one to learn."""

    question: str = Field(min_length=1)
    answers: list[str] = Field(min_length=1, description="Accepted answers; a single text will do.")
    context: str | None = Field(None, description="A passage that holds the answer.")

    @field_validator("answers", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        """One text is one answer; ``{"text": [...]}`` is how SQuAD rows stand in tables."""
        if isinstance(value, Mapping) and "text" in value:
            value = value["text"]
        return [value] if isinstance(value, str) else value

    @field_validator("answers")
    @classmethod
    def _not_blank(cls, value: list[str]) -> list[str]:
        if not all(answer.strip() for answer in value):
            raise ValueError("an answer is blank")
        return value


class QaRequest(BaseModel):
    """A question, optionally with a passage to answer it from."""

    question: str = Field(min_length=1)
    context: str | None = None


class QaResponse(BaseModel):
    """An answer and how sure the model is of it."""

    answer: str
    confidence: float = Field(
        ge=0, le=1, description="Geometric mean of the answer's token probabilities; 0 for an empty answer."
    )


class DomainQaTask(Task[QaExample, QaRequest, QaResponse, Empty]):
    name = "domain-qa"
    title = "Domain question answering"
    description = "A question about one domain in, optionally with a passage; a short answer out, with a confidence."
    example_model = QaExample
    request_model = QaRequest
    response_model = QaResponse
    state_model = Empty
    field_aliases: ClassVar[Mapping[str, str]] = {
        "q": "question",
        "a": "answers",
        "answer": "answers",
        "passage": "context",
    }
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "epochs": 3,
        "batch_size": 8,
        "warmup_ratio": 0.1,
        "max_length": 512,
    }
    example_request: ClassVar[Mapping[str, Any]] = {"question": "Do I need a building permit for a fence?"}

    def group_key(self, example: QaExample) -> str:
        """The question without case and punctuation, so that a repeated question is never on both sides."""
        return squad_normalise(example.question) or example.question

    def request_for(self, example: QaExample, state: Empty) -> QaRequest:
        return QaRequest(question=example.question, context=example.context)

    def target(self, example: QaExample) -> str:
        return example.answers[0]

    def prompt(self, request: QaRequest, state: Empty) -> Prompt:
        if request.context:
            return Prompt.chat(f"{request.context}\n\n{request.question}", system="Answer the question from the text.")
        return Prompt.chat(request.question, system="Answer the question.")

    def decoding(self, request: QaRequest, state: Empty) -> Generate:
        """Greedy; the log-probabilities are for the confidence."""
        return Generate(sampling=Sampling(max_tokens=128, logprobs=0))

    def parse(self, request: QaRequest, output: Output, state: Empty) -> QaResponse:
        assert isinstance(output, Generation)
        answer = output.text.strip()
        if not answer or not output.logprobs:
            return QaResponse(answer=answer, confidence=0.0)
        # Rounding can lift a certain token's log-probability a little above 0.
        return QaResponse(answer=answer, confidence=min(1.0, math.exp(mean(output.logprobs))))

    def request_from_text(self, text: str) -> QaRequest:
        if not text.strip():
            raise RequestError("there is no question")
        return QaRequest(question=text.strip())

    def text_of(self, response: QaResponse) -> str:
        return response.answer

    def evaluate(self, pairs: Sequence[tuple[QaExample, QaResponse]], state: Empty) -> Report:
        answers = [response.answer for _, response in pairs]
        references = [example.answers for example, _ in pairs]
        rows = list(zip(answers, references, strict=True))
        metrics = {
            "f1": Metric(value=mean([token_f1(*row) for row in rows]), signature="squad-v1.1"),
            "exact_match": Metric(value=mean([exact_match(*row) for row in rows]), signature="squad-v1.1"),
            "chrf": chrf(answers, references),
        }
        return Report(primary="f1", metrics=metrics, rows=len(pairs))


@hookimpl
def register_tasks(register: Callable[[AnyTask], None]) -> None:
    register(DomainQaTask())
