"""Orders for the process that composes, from the server's side."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from typing import Any

from graft_server.children import background_environment
from graft_server.problems import ProblemError

log = logging.getLogger(__name__)

#: Each takes the memory of a model or of several adapters.
_one_at_a_time = asyncio.Lock()


async def compose(order: dict[str, Any]) -> dict[str, Any]:
    """The answer to an order of ``worker``. A caller who hangs up ends the process.

    Raises:
        ProblemError: ``conflict`` with the reason, where the adapters don't fit; ``internal`` where the process failed.
    """
    async with _one_at_a_time:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "graft_server.composition.worker",
            json.dumps(order),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=background_environment(),
            start_new_session=True,
        )
        try:
            out, errors = await process.communicate()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        log.error("composing failed with %s:\n%s", process.returncode, errors.decode(errors="replace"))
        raise ProblemError("internal", "the process that composes adapters failed; the server's log has the details")
    answer: dict[str, Any] = json.loads(out.splitlines()[-1])
    if "fault" in answer:
        raise ProblemError("conflict", str(answer["fault"]))
    return answer
