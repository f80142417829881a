"""A completion between its request and its answer: what the engine is asked, and the document made of what it says."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from graft_client.schemas.openai import CompletionRequest
from graft_client.schemas.openai_answers import Completion, CompletionChoice
from graft_server.api.openai.shapes import completion_logprobs, sampling_of, usage_of
from graft_server.problems import ProblemError
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
                    text=answer.parsed.text,
                    logprobs=completion_logprobs(answer.tokens) if self.body.logprobs is not None else None,
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
        ProblemError: there is no prompt, or parameters contradict each other.
        UnknownError: there is no such model.
    """
    sampling = {"max_tokens": _DEFAULT_MAX_TOKENS, **sampling_of(body)}
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if not prompts:
        raise ProblemError("invalid-request", "`prompt` holds no text", param="prompt")

    def plan() -> list[Plan]:
        route = services.resolver.resolve(body.model, None, prompts[0], key=body.user)
        return [plan_verbatim(route, prompt, sampling=sampling) for prompt in prompts]

    planned = await asyncio.to_thread(plan)
    return CompletionPlan(body, [each for plan in planned for each in choices(plan, body.n or 1)])
