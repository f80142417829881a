"""The server keeps what its OpenAPI document says, whatever is sent: schemathesis makes requests for every operation.

Routes that are new are in the document, and so in this test. ``make fuzz`` does the same for longer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from graft_server.api.streaming import EVENTS
from graft_server.app import create_app
from graft_server.services import Services
from support.scripted_server import environment, scripted_server

EXAMPLES = os.environ.get("FUZZ_EXAMPLES", "4")
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
#: It reads the base model's weights, which the scripted engine has none of.
NEEDS_WEIGHTS = "/api/adapters/{ref}/merged"


@pytest.mark.timeout(7200 if "FUZZ_EXAMPLES" in os.environ else 300)
def test_every_operation_keeps_its_schema(tmp_path: Path) -> None:
    with scripted_server(tmp_path) as server:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
                *("--header", f"Authorization: Bearer {server.key}"),
                *("--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--checks", ",".join(CHECKS)),
                *("--exclude-path", NEEDS_WEIGHTS, "--request-timeout", "30", "--warnings", "off", "--no-color"),
            ],
            cwd=tmp_path,
            env={**environment(), "SCHEMATHESIS_HOOKS": "support.known_names"},
            capture_output=True,
            text=True,
            check=False,
        )
        log = server.log.read_text(errors="replace")
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
    # Also of what went wrong after an answer had begun.
    assert "Traceback" not in log, log[log.index("Traceback") :][:5_000]


def test_errors_and_streams_are_told_as_they_are(services: Services) -> None:
    document = create_app(services).openapi()
    native = document["paths"]["/api/adapters/{name}"]["get"]["responses"]
    openai = document["paths"]["/v1/models/{model}"]["get"]["responses"]
    assert set(native["default"]["content"]) == {"application/problem+json"}
    assert set(openai["default"]["content"]) == {"application/json"}
    assert not {"422"} & (set(native) | set(openai))
    streamed = {
        path for path, told in document["paths"].items() if EVENTS in str(told.get("post", {}).get("responses"))
    }
    assert streamed >= {"/api/predict", "/v1/chat/completions", "/v1/completions"}
    assert {"Problem", "OpenAIError"} <= set(document["components"]["schemas"])
