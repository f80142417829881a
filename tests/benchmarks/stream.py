"""A stream of requests of mixed lengths on the base model: continuous batching over static batches.

The same requests (prompts of 8 to 72 tokens, 4 to 64 new tokens) go to the torch engine, which takes new ones in as
others end, 64 at a time, and to ``transformers``' ``generate`` in padded batches of 64 in order of arrival, each of
which runs until its longest answer is done. Only the tokens that were asked for count:

    python tests/benchmarks/stream.py --base-model FOLDER
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from direct import DirectEngine, fresh_prompts
from report import ratio, write_report
from rich.console import Console

from graft_server.base_model import resolve
from graft_server.base_model.device import choose_device, choose_dtype
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.engine.base import GenerateRequest, PromptInput, SamplingParams

TOGETHER = 64


def make_stream(count: int, seed: int) -> list[tuple[str, int]]:
    """Prompts and how many tokens each asks for."""
    chance = random.Random(seed)
    return [(fresh_prompts(1, chance.randint(2, 64))[0], chance.randint(4, 64)) for _ in range(count)]


def ours(direct: DirectEngine, stream: list[tuple[str, int]]) -> float:
    """Seconds."""
    return direct.seconds(
        [
            GenerateRequest(text, PromptInput(text=text), SamplingParams(max_tokens=tokens, ignore_eos=True))
            for text, tokens in stream
        ]
    )


@torch.inference_mode()
def theirs(model: Any, tokenizer: Any, stream: list[tuple[str, int]]) -> float:
    """Seconds."""
    started = time.perf_counter()
    for at in range(0, len(stream), TOGETHER):
        batch = stream[at : at + TOGETHER]
        inputs = tokenizer([text for text, _ in batch], padding=True, return_tensors="pt").to(model.device)
        longest = max(tokens for _, tokens in batch)
        model.generate(**inputs, max_new_tokens=longest, min_new_tokens=longest, do_sample=False, pad_token_id=0)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", required=True, help="as for graft serve")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/graftwork"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--requests", type=int, default=128)
    arguments = parser.parse_args()
    base = resolve(arguments.base_model, arguments.cache)
    direct = DirectEngine(base, max_sequences=TOGETHER)
    device = choose_device("auto")
    model = load_model(base, dtype=choose_dtype("auto", device), device=device)
    tokenizer = load_tokenizer(base)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    console = Console()
    speeds: dict[str, list[float]] = {"stream": [], "generate": []}
    for pair in range(-1, arguments.pairs):
        # The first pair, a short one, only warms up.
        stream = make_stream(arguments.requests if pair >= 0 else 8, seed=pair)
        for side in sorted(speeds, reverse=bool(pair % 2)):
            seconds = ours(direct, stream) if side == "stream" else theirs(model, tokenizer, stream)
            if pair >= 0:
                speeds[side].append(sum(tokens for _, tokens in stream) / seconds)
                console.print(f"pair {pair + 1}: {side} {speeds[side][-1]:.0f} tokens/s")
    direct.engine.close()
    figures = [ratio("stream_over_generate", speeds["stream"], speeds["generate"], "tokens/s over tokens/s")]
    write_report("stream", figures)


if __name__ == "__main__":
    main()
