"""``graft keys`` and ``graft adapters limit`` against a server."""

from __future__ import annotations

import asyncio
from pathlib import Path

from graft_server.services import Services
from support.processes import Finished, run_graft
from support.serving import on_socket, publish


async def test_limits_from_the_command_line(services: Services, tmp_path: Path) -> None:
    admin = services.registry.create_key("root", ["admin"])[1]
    publish(services, tmp_path, "de")
    async with on_socket(services) as (http, _):

        async def graft(*arguments: str, code: int = 0) -> Finished:
            env = {"GRAFT_API_KEY": admin}
            return await asyncio.to_thread(run_graft, *arguments, url=str(http.base_url), env=env, code=code)

        create = ("keys", "create", "--name", "web", "--scope", "query", "--json")
        made = (await graft(*create, "--requests-per-minute", "60", "--tokens-per-day", "unlimited")).document
        assert made["limits"] == {"requests_per_minute": 60, "tokens_per_minute": None, "tokens_per_day": 0}
        assert "60 requests/min, unlimited tokens/day" in (await graft("keys", "list")).out
        changed = await graft(
            "keys", "limit", made["id"], "--tokens-per-minute", "20000", "--requests-per-minute", "default"
        )
        assert changed.out.strip() == f"{made['id']} (web): 20,000 tokens/min, unlimited tokens/day"
        assert (await graft("adapters", "limit", "de")).out.strip() == "de: as the server is set"
        limited = await graft("adapters", "limit", "de", "--requests-per-minute", "5")
        assert limited.out.strip() == "de: 5 requests/min"
        assert "limits   5 requests/min" in (await graft("adapters", "show", "de")).out
        assert "unlimited" in (await graft("adapters", "limit", "de", "--requests-per-minute", "0", code=2)).error
        assert "give at least one" in (await graft("keys", "limit", made["id"], code=2)).error
        assert "did you mean 'de'" in (await graft("adapters", "limit", "dee", "--tokens-per-day", "9", code=4)).error
