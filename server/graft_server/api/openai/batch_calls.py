"""What a batch asks: the same requests as over HTTP, with the same answers and errors, in the background."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from pydantic import ValidationError

from graft_client.schemas.openai import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from graft_client.schemas.openai_responses import ResponseRequest
from graft_server.api.openai.complete import Asked, complete
from graft_server.api.problems import any_problem, openai_document, openai_status, validation_problem
from graft_server.services import Services
from graft_server.serving.predictor import Terms

#: What says nothing of the request, and what ends the batch.
_PASSED_ON = frozenset(
    {
        "overloaded",
        "not-ready",
        "engine-unavailable",
        "draining",
        "registry-unavailable",
        "artefacts-unavailable",
        "storage-full",
        "unauthorized",
    }
)
#: How often a request is asked that the engine died of, which may have been another one's doing.
_DEATHS = 3

_BODIES: Mapping[str, type[Asked]] = {
    "/v1/chat/completions": ChatCompletionRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/v1/responses": ResponseRequest,
}


class BatchCalls:
    """Answers the requests of batches. See ``serving.batches.Call``."""

    def __init__(self, services: Services) -> None:
        self._services = services

    async def __call__(
        self, url: str, body: dict[str, Any], turn: AbstractAsyncContextManager[object]
    ) -> tuple[int, dict[str, Any]]:
        """The status and the document of a request's answer, or of its error.

        Raises:
            ProblemError: it is to be asked later, or its caller's key has ended.
        """
        # No request has a deadline of its own: how long it waits is the other traffic's doing.
        terms, deaths = Terms(background=True, turn=turn), 0
        while True:
            try:
                answer = await complete(self._services, _BODIES[url].model_validate(body), terms)
                return 200, answer.model_dump(mode="json")
            except ValidationError as error:
                problem = validation_problem(error.errors(include_url=False), openai=True)
            except Exception as error:
                problem = any_problem(error)
            if problem.code in _PASSED_ON:
                raise problem
            deaths += problem.code == "engine-died"
            if problem.code != "engine-died" or deaths == _DEATHS:
                return openai_status(problem), openai_document(problem).model_dump(mode="json")
