"""One request: sent, its stream read and timed, and whatever goes wrong put into a word."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import EventSource, SSEError, aconnect_sse

from graft_client.bench.endpoints import ENDPOINTS, Endpoint
from graft_client.bench.records import Failure, Measurements, Record
from graft_client.bench.settings import BenchSettings
from graft_client.bench.workload import Planned

_DONE = "[DONE]"
_LONGEST_MESSAGE = 300


class Exchange:
    """Sends requests as the settings say. ``clock`` gives the seconds since the run began."""

    def __init__(self, http: httpx.AsyncClient, settings: BenchSettings, clock: Callable[[], float]) -> None:
        self._http = http
        self._settings = settings
        self._endpoint = ENDPOINTS[settings.endpoint]
        self._clock = clock

    async def ask(self, planned: Planned, due: float, measurements: Measurements) -> Record:
        """Sends one request and reads its answer to the end. A failure is recorded, not raised; a request that is
        cancelled is not recorded."""
        record = Record(planned.model, due)
        measurements.sent += 1
        try:
            async with aconnect_sse(self._http, "POST", self._endpoint.path, json=self._body(planned)) as source:
                if not source.response.is_success:
                    await source.response.aread()
                    raise _ExchangeError(str(source.response.status_code), _told(source.response))
                await self._read(source, planned, record, measurements)
        except (_ExchangeError, httpx.HTTPError) as error:
            record.ended = self._clock()
            record.failure = _failure(error)
        measurements.records.append(record)
        return record

    def _body(self, planned: Planned) -> dict[str, Any]:
        body = {
            "model": planned.model,
            **self._endpoint.prompt(planned.prompt),
            "max_tokens": planned.output_tokens,
            "temperature": self._settings.temperature,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._settings.ignore_eos:
            body["ignore_eos"] = True
        return body

    async def _read(self, source: EventSource, planned: Planned, record: Record, measurements: Measurements) -> None:
        whole = False
        usage: tuple[int, int] | None = None
        # To the end even behind [DONE]: leaving a stream early costs the connection.
        async with aclosing(source.aiter_sse()) as events:
            async for event in events:
                record.ended = self._clock()
                if event.data == _DONE:
                    whole = True
                    continue
                chunk = _read_chunk(event.data, self._endpoint)
                if chunk.has_text:
                    record.chunks.append(record.ended)
                    measurements.chunks += 1
                whole = whole or chunk.is_last
                usage = chunk.usage or usage
        if not whole:
            raise _ExchangeError("broken", "the stream ended before the answer was complete")
        record.counted = usage is not None
        record.prompt_tokens, record.output_tokens = usage or (planned.words, len(record.chunks))


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What matters of a chunk. ``usage`` is the tokens of the prompt and of the answer."""

    has_text: bool
    is_last: bool
    usage: tuple[int, int] | None


class _ExchangeError(Exception):
    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def _read_chunk(data: str, endpoint: Endpoint) -> _Chunk:
    try:
        chunk = json.loads(data)
        if chunk.get("error"):
            raise _ExchangeError("stream", _error_text(chunk))
        choices = chunk.get("choices") or ()
        usage = chunk.get("usage")
        return _Chunk(
            has_text=any(endpoint.text(choice) for choice in choices),
            is_last=any(choice.get("finish_reason") is not None for choice in choices),
            usage=(int(usage["prompt_tokens"]), int(usage["completion_tokens"])) if usage else None,
        )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise _ExchangeError("protocol", f"not a chunk of OpenAI's: {data}") from error


def _failure(error: _ExchangeError | httpx.HTTPError) -> Failure:
    match error:
        case _ExchangeError(kind=kind):
            pass
        case httpx.ConnectError() | httpx.ConnectTimeout():
            kind = "connect"
        case httpx.TimeoutException():
            kind = "timeout"
        case SSEError() | httpx.DecodingError():
            kind = "protocol"
        case _:
            kind = "broken"
    return Failure(kind, (str(error) or type(error).__name__)[:_LONGEST_MESSAGE])


def _told(response: httpx.Response) -> str:
    """What an answer that is no stream says about itself: its error's sentence, else its text."""
    try:
        document = response.json()
    except ValueError:
        return response.text.strip() or response.reason_phrase
    return _error_text(document) if isinstance(document, dict) else response.text


def _error_text(document: dict[str, Any]) -> str:
    """The sentence in OpenAI's error object, or where other servers have it."""
    error = document.get("error")
    sentence = error.get("message") if isinstance(error, dict) else error
    return str(sentence or document.get("detail") or document.get("message") or document)
