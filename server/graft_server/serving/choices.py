"""Several answers in one response: to several prompts, or to one prompt with random numbers of their own.

Each is a request of its own to the engine, which computes what their prompts have in common once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from graft_plugins.task import Score
from graft_server.quotas.meter import Charge
from graft_server.serving.pipeline import Plan
from graft_server.serving.predictor import Answer, Piece, Predictor, Terms


def choices(plan: Plan, n: int) -> list[Plan]:
    """``n`` plans for one prompt. A seed goes up by one from each to the next, so that they differ and can be had
    again, each one alone too."""
    if isinstance(plan.decoding, Score) or plan.decoding.sampling.seed is None:
        return [plan] * n
    sampling = plan.decoding.sampling
    seeded = (sampling.model_copy(update={"seed": (sampling.seed or 0) + i}) for i in range(n))
    return [replace(plan, decoding=plan.decoding.model_copy(update={"sampling": each})) for each in seeded]


async def answer_all(predictor: Predictor, plans: Sequence[Plan], terms: Terms) -> list[Answer]:
    """All answers, in the plans' order; the first failure ends the others."""
    async with predictor.charged(plans, patience=terms.patience, turn=terms.turn) as charges:
        tasks = [
            asyncio.create_task(predictor.answer(plan, terms, charge=charge))
            for plan, charge in zip(plans, charges, strict=True)
        ]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await _end(tasks)


async def stream_all(
    predictor: Predictor, plans: Sequence[Plan], terms: Terms
) -> AsyncGenerator[tuple[int, Piece | Answer]]:
    """Pieces and answers as they come, each with the index of its plan. Closing it, or the first failure, ends all.

    Raises:
        ProblemError: whatever ended one of the requests.
    """
    # One place a plan: a slow reader slows the work down instead of filling memory.
    ready: asyncio.Queue[tuple[int, Piece | Answer | Exception]] = asyncio.Queue(len(plans))

    async def follow(index: int, plan: Plan, charge: Charge) -> None:
        try:
            async with aclosing(predictor.stream(plan, terms, charge=charge)) as items:
                async for item in items:
                    await ready.put((index, item))
        except Exception as error:
            await ready.put((index, error))

    async with predictor.charged(plans, patience=terms.patience, turn=terms.turn) as charges:
        tasks = [
            asyncio.create_task(follow(index, plan, charge))
            for index, (plan, charge) in enumerate(zip(plans, charges, strict=True))
        ]
        try:
            left = len(plans)
            while left:
                index, item = await ready.get()
                if isinstance(item, Exception):
                    raise item
                left -= isinstance(item, Answer)
                yield index, item
                # Where there is always something ready, this is where a response that nobody reads can be cancelled.
                await asyncio.sleep(0)
        finally:
            await _end(tasks)


async def _end(tasks: Sequence[asyncio.Task[Answer]] | Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
