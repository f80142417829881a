"""Generation with eight adapters in one batch against the base model alone, in the same engine.

64 sequences of 64 new tokens, adapters of rank 16 on all linear layers, alternating pairs:

    python tests/benchmarks/mixed_batch.py --base-model FOLDER
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from report import ratio, write_report

from graft_plugins.manager import PluginHost
from graft_server.base_model import BaseModel, resolve
from graft_server.base_model.device import choose_device, choose_dtype
from graft_server.base_model.loading import load_model
from graft_server.engine.base import (
    AdapterSource,
    ChatMessage,
    Delta,
    EngineError,
    GenerateRequest,
    PromptInput,
    SamplingParams,
    ScoreResult,
)
from graft_server.engine.messages import EngineConfig
from graft_server.engine.torch.engine import TorchEngine
from graft_server.plugins import server_plugins

ADAPTERS, SEQUENCES, NEW_TOKENS, RANK = 8, 64, 64, 16
PROMPT = PromptInput(messages=(ChatMessage("user", "Tell me a story about a fox and a crow."),))


class Counter:
    """An event sink that counts ends and lets nothing fail unseen."""

    def __init__(self) -> None:
        self.ended = 0

    def delta(self, request_id: str, delta: Delta) -> None:
        self.ended += delta.finish_reason is not None

    def scored(self, request_id: str, result: ScoreResult) -> None:
        self.ended += 1

    def embedded(self, request_id: str, vectors: list[list[float]]) -> None:
        self.ended += 1

    def done(self, request_id: str) -> None:
        self.ended += 1

    def error(self, request_id: str, error: EngineError) -> None:
        raise error


def make_adapters(base: BaseModel, host: PluginHost, folder: Path) -> list[AdapterSource]:
    """LoRA adapters with random weights; the values do not matter to the speed."""
    method = host.method("lora")
    device = choose_device("auto")
    model = load_model(base, dtype=choose_dtype("auto", device), device=device)
    attached = method.attach(model, method.options_model.model_validate({"r": RANK}), seed=0)
    sources = []
    for i in range(1, ADAPTERS + 1):
        with torch.no_grad():
            for parameter in attached.parameters():
                if parameter.requires_grad:
                    parameter.normal_(0, 0.01)
        target = folder / str(i)
        target.mkdir()
        method.save(attached, str(target))
        sources.append(AdapterSource(f"a{i}@1", i, str(target), "lora", RANK))
    return sources


def generate(engine: TorchEngine, events: Counter, adapters: list[AdapterSource | None], run: str) -> float:
    """Generated tokens a second, prompts included in the time."""
    events.ended = 0
    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    started = time.perf_counter()
    for i in range(SEQUENCES):
        engine.submit(GenerateRequest(f"{run}-{i}", PROMPT, sampling, adapters[i % len(adapters)]))
    while events.ended < SEQUENCES:
        engine.poll_adapters()
        engine.step()
    return SEQUENCES * NEW_TOKENS / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-model", required=True)
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/graftwork"))
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    base = resolve(arguments.base_model, arguments.cache)
    host = PluginHost.load("", extra=server_plugins())
    events = Counter()
    with tempfile.TemporaryDirectory() as folder:
        adapters = make_adapters(base, host, Path(folder))
        config = EngineConfig(engine="torch", base_model=arguments.base_model, cache_dir=str(arguments.cache))
        engine = TorchEngine(base, config, host.methods, events)
        generate(engine, events, [*adapters, None], "warm")
        mixed, alone = [], []
        for pair in range(arguments.pairs):
            alone.append(generate(engine, events, [None], f"base{pair}"))
            mixed.append(generate(engine, events, [*adapters], f"mixed{pair}"))
        engine.close()
    write_report("mixed_batch", [ratio("mixed8_over_base", mixed, alone, "tokens/s over tokens/s")])


if __name__ == "__main__":
    main()
