"""Requests of the OpenAI-shaped API answered without HTTP, as a batch runner does it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import overload

from graft_client.schemas.openai import ChatCompletionRequest, CompletionRequest, EmbeddingRequest
from graft_client.schemas.openai_answers import ChatCompletion, Completion, EmbeddingList
from graft_client.schemas.openai_responses import ResponseObject, ResponseRequest
from graft_server.access.principal import Principal, current_lease
from graft_server.api.openai.chat_plan import plan_chat
from graft_server.api.openai.completion_plan import plan_completion
from graft_server.api.openai.embeddings import embed
from graft_server.api.openai.response_plan import plan_response
from graft_server.services import Services
from graft_server.serving.predictor import Terms

Asked = ChatCompletionRequest | CompletionRequest | EmbeddingRequest | ResponseRequest


@overload
async def complete(
    services: Services, body: ChatCompletionRequest, terms: Terms, principal: Principal | None = None
) -> ChatCompletion: ...
@overload
async def complete(
    services: Services, body: CompletionRequest, terms: Terms, principal: Principal | None = None
) -> Completion: ...
@overload
async def complete(
    services: Services, body: EmbeddingRequest, terms: Terms, principal: Principal | None = None
) -> EmbeddingList: ...
@overload
async def complete(
    services: Services, body: ResponseRequest, terms: Terms, principal: Principal | None = None
) -> ResponseObject: ...
async def complete(
    services: Services,
    body: Asked,
    terms: Terms,
    principal: Principal | None = None,
) -> ChatCompletion | Completion | EmbeddingList | ResponseObject:
    """The whole answer to one request: the document that its route would send, and keep. Cancelling it ends the work.

    ``terms`` are from ``services.predictor.terms(seconds, background=True)`` for what is to give way to interactive
    requests, or ``Terms(background=True)`` for what may take for ever. ``principal`` is whose request it is: only what
    they may see answers; without one, whoever acts already. The lease that holds already goes on holding. A body that
    asks for a stream is answered whole.

    Raises:
        ProblemError: whatever the request is refused for or ended by; ``openai_document`` puts it in OpenAI's shape.
        RegistryError, UnknownNameError, FullError, EngineError: see ``as_problem``, which turns them into one.
    """
    with nullcontext() if principal is None else principal.acting(current_lease.get()):
        match body:
            case ChatCompletionRequest():
                return await (await plan_chat(services, body)).answer(services, terms)
            case CompletionRequest():
                return await (await plan_completion(services, body)).answer(services, terms)
            case EmbeddingRequest():
                return await embed(services, body, terms)
            case ResponseRequest():
                return await (await plan_response(services, body)).answer(services, terms)
