"""A completion between its request and its answer: what the engine is asked, and the document made of what it says."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from graft_client.schemas.openai import CompletionRequest
from graft_client.schemas.openai_answers import Completion, CompletionChoice
from graft_plugins.task import Prompt
from graft_server.api.openai.shapes import completion_logprobs, prompts_of, sampling_of, usage_of
from graft_server.engine.base import EchoedPrompt, TokenLogprob
from graft_server.registry.reading import with_files
from graft_server.services import Services
from graft_server.serving.choices import answer_all, choices
from graft_server.serving.pipeline import Plan, plan_verbatim
from graft_server.serving.predictor import Terms

#: OpenAI's default where the caller sets no ``max_tokens``.
_DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """One request for completions; ``plans`` has ``n`` in a row for each of its prompts."""

    body: CompletionRequest
    plans: list[Plan]
    id: str = field(default_factory=lambda: f"cmpl-{time.time_ns():x}")
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def n(self) -> int:
        """Choices for each prompt."""
        return self.body.n or 1

    def echoed(self, index: int, prompt: EchoedPrompt | None = None) -> str:
        """What stands before the text of a choice; where its prompt are tokens, the engine knows."""
        if not self.body.echo:
            return ""
        given = self.plans[index].prompt.text
        if given is not None:
            return given
        return prompt.text if prompt is not None else ""

    def logprobs(
        self, index: int, tokens: Sequence[TokenLogprob], prompt: EchoedPrompt | None, offset: int = 0
    ) -> dict[str, Any] | None:
        """A choice's ``logprobs``, or those of a piece of it that begins at ``offset``, with the ``prompt`` in front of
        it where that is told; ``None`` unless they are asked for."""
        if self.body.logprobs is None:
            return None
        return completion_logprobs(tokens, offset, prompt=prompt, echoed=self.echoed(index, prompt))

    async def answer(self, services: Services, terms: Terms) -> Completion:
        """All choices whole; the first failure ends the others.

        Raises:
            ProblemError: whatever ended one of them.
        """
        answers = await answer_all(services.predictor, self.plans, terms)
        return Completion(
            id=self.id,
            created=self.created,
            model=self.plans[0].answering.ref,
            choices=[
                CompletionChoice(
                    index=index,
                    text=self.echoed(index, answer.prompt) + answer.parsed.text,
                    logprobs=self.logprobs(index, answer.tokens, answer.prompt),
                    finish_reason=answer.finish_reason,
                )
                for index, answer in enumerate(answers)
            ],
            usage=usage_of([answer.usage for answer in answers], self.n),
            system_fingerprint=services.system_fingerprint,
        )


async def plan_completion(services: Services, body: CompletionRequest) -> CompletionPlan:
    """Route the prompts, each as it is.

    Raises:
        ProblemError: there is no prompt, parameters contradict each other, or what is asked for can't be had.
        UnknownError: there is no such model.
    """
    sampling = {"max_tokens": _DEFAULT_MAX_TOKENS, **sampling_of(body)}
    prompts = prompts_of(body)

    def plan() -> list[Plan]:
        route = services.resolver.resolve(body.model, None, prompts[0].text or "", key=body.user)
        return [plan_verbatim(route, each, sampling=sampling, echo=_echoes(body, each)) for each in prompts]

    planned = await with_files(services.registry, plan)
    return CompletionPlan(body, [each for plan in planned for each in choices(plan, body.n or 1)])


def _echoes(body: CompletionRequest, prompt: Prompt) -> bool:
    """Whether the engine must tell the prompt: its text is known here, unless the caller gave tokens."""
    return bool(body.echo) and (body.logprobs is not None or prompt.text is None)
