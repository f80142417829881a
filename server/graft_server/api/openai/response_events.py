"""A streamed response: its typed events, in the order that OpenAI's reference gives them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from itertools import count
from typing import Any

from graft_client.schemas.openai_responses import OutputMessage, OutputText, ResponseError
from graft_server.api.openai.response_plan import ResponsePlan
from graft_server.api.openai.shapes import chat_logprobs
from graft_server.api.problems import any_problem
from graft_server.api.streaming import event
from graft_server.services import Services
from graft_server.serving.predictor import Answer, Piece


async def response_events(
    services: Services, items: AsyncGenerator[Piece | Answer], planned: ResponsePlan
) -> AsyncGenerator[str]:
    """Events of one response; the last one is ``response.completed``, ``.incomplete`` or ``.failed``. The response is
    kept before its end is told, so that a caller can go on from it at once."""
    numbers = count()

    def tell(kind: str, **fields: Any) -> str:
        document = {"type": kind, "sequence_number": next(numbers), **fields}
        return event(json.dumps(document, ensure_ascii=False), name=kind)

    place = {"item_id": planned.message_id, "output_index": 0, "content_index": 0}
    begun = planned.document.model_copy(update={"model": planned.plan.answering.ref})
    async with aclosing(items):
        try:
            yield tell("response.created", response=begun.model_dump(mode="json"))
            yield tell("response.in_progress", response=begun.model_dump(mode="json"))
            item = OutputMessage(id=planned.message_id, status="in_progress", content=[])
            yield tell("response.output_item.added", output_index=0, item=item.model_dump(mode="json"))
            yield tell("response.content_part.added", **place, part=OutputText(text="").model_dump(mode="json"))
            streamed = False
            async for each in items:
                if isinstance(each, Piece):
                    streamed = True
                    logprobs = chat_logprobs(each.tokens)["content"] if planned.logprobs else []
                    yield tell("response.output_text.delta", **place, delta=each.text, logprobs=logprobs)
                    continue
                message = planned.message(each)
                part = message.content[0]
                # Scored answers have no pieces: their text comes whole.
                if not streamed and part.text:
                    yield tell("response.output_text.delta", **place, delta=part.text, logprobs=[])
                yield tell("response.output_text.done", **place, text=part.text, logprobs=part.logprobs)
                yield tell("response.content_part.done", **place, part=part.model_dump(mode="json"))
                yield tell("response.output_item.done", output_index=0, item=message.model_dump(mode="json"))
                whole = await planned.finish(services, each)
                yield tell(f"response.{whole.status}", response=whole.model_dump(mode="json"))
        except Exception as error:
            told = ResponseError(code="server_error", message=any_problem(error).detail)
            failed = begun.model_copy(update={"status": "failed", "error": told})
            yield tell("response.failed", response=failed.model_dump(mode="json"))
