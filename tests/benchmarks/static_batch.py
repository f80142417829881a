"""One static batch, 64 sequences of 64 new tokens: the torch engine with and without adapters, beside what people have.

The base model alone, 8 and 32 LoRA adapters (rank 16, all linear layers) mixed in the batch, ``transformers``'
``generate`` on the base model, and PEFT's ``generate`` with ``adapter_names`` for the same 8 adapters. Every side has
prompts of one length, none seen before, and greedy decoding. They take turns, and ratios are taken within a turn:

    python tests/benchmarks/static_batch.py --base-model FOLDER

On a GPU the engine is also compared with what its memory allows (``bandwidth.py``).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from adapters import sources, write_adapters
from bandwidth import bytes_per_second, bytes_per_step, synchronize
from direct import DirectEngine, fresh_prompts
from report import median, ratio, write_report
from rich.console import Console

from graft_server.base_model import BaseModel, resolve
from graft_server.base_model.device import choose_device, choose_dtype
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.engine.base import AdapterSource, GenerateRequest, PromptInput, SamplingParams
from graft_server.training.methods.detect import WEIGHTS


def ours(direct: DirectEngine, adapters: Sequence[AdapterSource | None], count: int, tokens: int) -> float:
    """Seconds; sequence ``i`` has adapter ``i`` modulo their number."""
    sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
    requests = [
        GenerateRequest(text, PromptInput(text=text), sampling, adapters[i % len(adapters)])
        for i, text in enumerate(fresh_prompts(count))
    ]
    return direct.seconds(requests)


@torch.inference_mode()
def theirs(model: Any, tokenizer: Any, count: int, tokens: int, names: Sequence[str] = ()) -> float:
    """Seconds of ``generate``; with ``names``, PEFT gives sequence ``i`` the adapter ``i`` modulo their number."""
    # Of equal length, so without padding.
    inputs = torch.tensor(tokenizer(fresh_prompts(count))["input_ids"], device=model.device)
    options: dict[str, Any] = {"adapter_names": [names[i % len(names)] for i in range(count)]} if names else {}
    started = time.perf_counter()
    output = model.generate(
        input_ids=inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
        **options,
    )
    synchronize()
    assert output.shape[1] == inputs.shape[1] + tokens
    return time.perf_counter() - started


def load_plain(base: BaseModel) -> Any:
    device = choose_device("auto")
    return load_model(base, dtype=choose_dtype("auto", device), device=device)


def load_peft(base: BaseModel, adapters: Sequence[AdapterSource]) -> Any:
    from peft import PeftModel

    first, *others = adapters
    model = PeftModel.from_pretrained(load_plain(base), first.path, adapter_name=first.ref.replace("@", "-"))
    for other in others:
        model.load_adapter(other.path, adapter_name=other.ref.replace("@", "-"))
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", required=True, help="as for graft serve")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/graftwork"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a sequence")
    parser.add_argument("--kv-cache-mib", type=int, default=1024)
    parser.add_argument("--without", nargs="*", default=[], help="sides to leave out, such as peft")
    arguments = parser.parse_args()
    base = resolve(arguments.base_model, arguments.cache)
    tokenizer = load_tokenizer(base)
    count, tokens = arguments.sequences, arguments.tokens
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        folders = write_adapters(base, Path(folder), 8)
        adapters = sources(folders, range(1, 33))
        direct = DirectEngine(base, kv_cache_mib=arguments.kv_cache_mib)
        direct.load(adapters)
        plain = load_plain(base)
        peft = load_peft(base, adapters[:8]) if "peft" not in arguments.without else None
        names = [adapter.ref.replace("@", "-") for adapter in adapters[:8]]
        sides: dict[str, Callable[[int], float]] = {
            "base": lambda tokens: ours(direct, [None], count, tokens),
            "mixed8": lambda tokens: ours(direct, adapters[:8], count, tokens),
            "mixed32": lambda tokens: ours(direct, adapters, count, tokens),
            "generate": lambda tokens: theirs(plain, tokenizer, count, tokens),
            "peft": lambda tokens: theirs(peft, tokenizer, count, tokens, names),
        }
        sides = {name: side for name, side in sides.items() if name not in arguments.without}
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for side in sides.values():
            # What comes often enough is recorded once (CUDA graphs).
            for _ in range(3):
                side(4)
        for turn in range(arguments.pairs):
            # Who goes first alternates, so that a machine that slows down is unfair to nobody.
            for name in sorted(sides, reverse=bool(turn % 2)):
                speeds[name].append(count * tokens / sides[name](tokens))
                console.print(f"turn {turn + 1}: {name} {speeds[name][-1]:.0f} tokens/s")
        adapter_bytes = (folders[0] / WEIGHTS).stat().st_size
        direct.engine.close()
    wanted = [
        ("mixed8_over_base", "mixed8", "base"),
        ("mixed32_over_base", "mixed32", "base"),
        ("mixed8_over_peft", "mixed8", "peft"),
        ("base_over_generate", "base", "generate"),
    ]
    figures = [
        ratio(name, speeds[above], speeds[below], "tokens/s over tokens/s")
        for name, above, below in wanted
        if above in speeds and below in speeds
    ]
    if torch.cuda.is_available():
        bandwidth, context = bytes_per_second(), len(tokenizer(fresh_prompts(1)[0])["input_ids"]) + tokens / 2
        figures.append(median("memory_bandwidth", [bandwidth / 1e12], "TB/s"))
        for name, mixed in (("base", 0), ("mixed8", 8), ("mixed32", 32)):
            step = bytes_per_step(plain, sequences=count, context=context, adapter_bytes=mixed * adapter_bytes)
            bound = [count * bandwidth / step] * arguments.pairs
            figures.append(ratio(f"{name}_over_bandwidth", speeds[name], bound, "tokens/s over tokens/s"))
    write_report("static_batch", figures)


if __name__ == "__main__":
    main()
