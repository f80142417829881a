"""``/v1/embeddings``: texts as vectors of the base model, the mean of its last hidden states."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence

from fastapi import APIRouter, Request

from graft_client.schemas.openai import EmbeddingRequest
from graft_client.schemas.openai_answers import EmbeddingItem, EmbeddingList, EmbeddingUsage
from graft_server.api.deps import ServicesDep, TermsDep, require_engine
from graft_server.api.streaming import until_disconnect
from graft_server.problems import ProblemError
from graft_server.services import Services
from graft_server.serving.predictor import Terms

router = APIRouter(prefix="/v1/embeddings", tags=["openai"])

#: As many as OpenAI's service takes.
_MOST_TEXTS = 2048


@router.post("")
async def embeddings(body: EmbeddingRequest, request: Request, services: ServicesDep, terms: TermsDep) -> EmbeddingList:
    """Embed one or several texts with the base model, as numbers or as base64 of them."""
    return await until_disconnect(request, embed(services, body, terms))


async def embed(services: Services, body: EmbeddingRequest, terms: Terms) -> EmbeddingList:
    """The vectors of a request's texts.

    Raises:
        ProblemError: see ``Embedder.embed``; or the texts or the model are none that can be embedded.
        UnknownError: there is no such model.
        FullError, EngineError: see ``Embedder.embed``.
    """
    texts = _texts(body)
    await asyncio.to_thread(_require_base, services, body.model)
    require_engine(services)
    embedded = await services.embedder.embed(texts, terms)
    encode = _packed if body.encoding_format == "base64" else list
    return EmbeddingList(
        data=[EmbeddingItem(index=index, embedding=encode(vector)) for index, vector in enumerate(embedded.vectors)],
        model=services.base_name,
        usage=EmbeddingUsage(prompt_tokens=embedded.prompt_tokens, total_tokens=embedded.prompt_tokens),
    )


def _texts(body: EmbeddingRequest) -> list[str]:
    """
    Raises:
        ProblemError: there are none or too many, one is empty, they are token ids, or shorter vectors are asked for.
    """
    if body.dimensions is not None:
        detail = "`dimensions`: the base model's vectors can't be shortened; leave it out"
        raise ProblemError("invalid-request", detail, param="dimensions")
    given = [body.input] if isinstance(body.input, str) else body.input
    if not 0 < len(given) <= _MOST_TEXTS:
        detail = f"`input` holds {len(given)} texts; send 1 to {_MOST_TEXTS} at a time"
        raise ProblemError("invalid-request", detail, param="input")
    texts = []
    for each in given:
        if not isinstance(each, str):
            detail = "`input`: token ids are not taken, they would be another tokenizer's; send the texts themselves"
            raise ProblemError("invalid-request", detail, param="input")
        if not each:
            raise ProblemError("invalid-request", "`input` can't be or hold an empty string", param="input")
        texts.append(each)
    return texts


def _require_base(services: Services, model: str) -> None:
    """
    Raises:
        ProblemError: it is an adapter or a route.
        UnknownError: there is no such model.
    """
    if not services.is_base(model):
        services.registry.target(model)
        detail = f"`model`: texts are embedded by the base model alone; ask for {services.base_name!r}, not {model!r}"
        raise ProblemError("unservable", detail, param="model")


def _packed(vector: Sequence[float]) -> str:
    """Base64 of little-endian float32, which OpenAI's SDKs ask for and unpack by themselves."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
