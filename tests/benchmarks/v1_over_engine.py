"""What the OpenAI-shaped layer costs where applications ask it: tokens/s of chats over those of the bare engine.

As ``http_over_engine``, with conversations instead of texts: routing, task, chat template and OpenAI's documents are on
the way, and the engine is given the same messages directly.

- ``http``: ``POST /v1/chat/completions``, answered whole (``v1_over_engine``)
- ``stream``: the same, streamed in chunks of one token (``v1_stream_over_engine``)

    PYTHONPATH=tests python tests/benchmarks/v1_over_engine.py --base-model FOLDER
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from http_over_engine import compare
from options import parser
from report import write_report

from graft_server.bench.random_adapters import locate
from support.processes import running


def main() -> None:
    own = parser(__doc__)
    own.add_argument("--sequences", type=int, default=64)
    arguments = own.parse_args()
    base = locate(arguments.base_model)
    with tempfile.TemporaryDirectory() as folder, running(base.path, Path(folder) / "data") as server:
        comparing = compare(base, server.url, arguments.sequences, arguments.pairs, name="v1", endpoint="chat")
        figures = asyncio.run(comparing)
    write_report("v1_over_engine", figures)


if __name__ == "__main__":
    main()
