"""What schemathesis has found: each of these was a 500, or a stream that broke."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from graft_server.services import Services
from support.serving import publish

HUGE = 2**64


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", f"/api/adapters/de/versions/{HUGE}/pin", None),
        ("DELETE", f"/api/adapters/de/versions/-{HUGE}/pin", None),
        ("DELETE", f"/api/adapters/de/versions/{HUGE}", None),
        ("POST", "/api/adapters/de/aliases/production", {"version": HUGE}),
        ("POST", "/api/gc", {"older_than_days": 1e306}),
        ("GET", f"/api/jobs/none/events?after={HUGE}", None),
        ("POST", "/api/merges", {"name": "both", "adapters": ["de", "de"], "method": "xlinear"}),
    ],
)
async def test_numbers_that_are_too_large_and_words_that_are_none(
    client: httpx.AsyncClient, services: Services, tmp_path: Path, method: str, path: str, body: dict[str, int] | None
) -> None:
    publish(services, tmp_path, "de")
    answer = await client.request(method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request")
