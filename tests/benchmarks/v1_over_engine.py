"""What the OpenAI-shaped layer costs where applications ask it: tokens/s of chats over those of the bare engine.

As ``http_over_engine``, with conversations instead of texts: routing, task, chat template and OpenAI's documents are on
the way, and the engine is given the same messages directly.

- ``http``: ``POST /v1/chat/completions``, answered whole (``v1_over_engine``)
- ``stream``: the same, streamed in chunks of one token (``v1_stream_over_engine``)

    PYTHONPATH=tests python tests/benchmarks/v1_over_engine.py --base-model FOLDER
"""

from __future__ import annotations

from http_over_engine import run

if __name__ == "__main__":
    run(__doc__, name="v1", endpoint="chat")
