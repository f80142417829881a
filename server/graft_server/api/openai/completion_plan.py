"""A completion between its request and its answer: what the engine is asked, and the document made of what it says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from graft_client.schemas.openai import CompletionRequest
from graft_client.schemas.openai_answers import Completion, CompletionChoice
from graft_server.api.openai.shapes import completion_logprobs, prompts_of, sampling_of, usage_of
from graft_server.problems import ProblemError
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

    def echoed(self, index: int) -> str:
        """What stands before the text of a choice."""
        return self.plans[index].prompt.text or "" if self.body.echo else ""

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
                    text=self.echoed(index) + answer.parsed.text,
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
        ProblemError: there is no prompt, parameters contradict each other, or what is asked for can't be had.
        UnknownError: there is no such model.
    """
    sampling = {"max_tokens": _DEFAULT_MAX_TOKENS, **sampling_of(body)}
    prompts = prompts_of(body)
    if body.echo and body.logprobs is not None:
        detail = "`echo` gives no log-probabilities of the prompt; leave `logprobs` or `echo` out"
        raise ProblemError("unsupported-parameter", detail, param="logprobs")
    if body.echo and any(prompt.tokens for prompt in prompts):
        raise ProblemError("unsupported-parameter", "`echo` needs prompts that are texts", param="echo")

    def plan() -> list[Plan]:
        route = services.resolver.resolve(body.model, None, prompts[0].text or "", key=body.user)
        return [plan_verbatim(route, prompt, sampling=sampling) for prompt in prompts]

    planned = await with_files(services.registry, plan)
    return CompletionPlan(body, [each for plan in planned for each in choices(plan, body.n or 1)])
