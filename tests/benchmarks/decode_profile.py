"""Where the time of the torch engine's decode steps goes: on a GPU, its kernels and the time it waits for the CPU.

python tests/benchmarks/decode_profile.py --base-model FOLDER --adapters 8
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import torch
from adapters import sources, write_adapters
from direct import DirectEngine, fresh_prompts
from torch.profiler import ProfilerActivity, profile

from graft_server.base_model import resolve
from graft_server.engine.base import AdapterSource, GenerateRequest, PromptInput, SamplingParams

_STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", required=True, help="as for graft serve")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/graftwork"))
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--words", type=int, default=24, help="of each prompt")
    parser.add_argument("--adapters", type=int, nargs="*", default=[0, 8, 32], help="how many are mixed; 0 is the base")
    parser.add_argument("--kv-cache-mib", type=int, default=1024)
    arguments = parser.parse_args()
    base = resolve(arguments.base_model, arguments.cache)
    with tempfile.TemporaryDirectory() as folder:
        adapters = sources(write_adapters(base, Path(folder), 4), range(1, 1 + max(arguments.adapters)))
        direct = DirectEngine(base, kv_cache_mib=arguments.kv_cache_mib)
        direct.load(adapters)
        for count in arguments.adapters:
            _profile(direct, adapters[:count] or [None], arguments.sequences, arguments.words)
        direct.engine.close()


def _profile(direct: DirectEngine, adapters: list[AdapterSource | None], sequences: int, words: int) -> None:
    engine = direct.engine
    sampling = SamplingParams(max_tokens=_STEPS + 12, ignore_eos=True)
    for i, text in enumerate(fresh_prompts(sequences, words)):
        engine.submit(GenerateRequest(text, PromptInput(text=text), sampling, adapters[i % len(adapters)]))
    while engine.scheduler.waiting or any(sequence.remaining > 1 for sequence in engine.scheduler.running):
        engine.step()
    for _ in range(8):
        engine.step()
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiled:
        for _ in range(_STEPS):
            engine.step()
    events = [event for event in profiled.events() or [] if not on_gpu or event.device_type.name == "CUDA"]
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in events:
        spent[event.name] += event.time_range.elapsed_us()
        calls[event.name] += 1
    wall = max(event.time_range.end for event in events) - min(event.time_range.start for event in events)
    mixed = "the base" if adapters == [None] else f"{len(adapters)} adapters"
    busy = f"; the GPU is busy for {sum(spent.values()) / _STEPS / 1e3:.2f} ms of it" if on_gpu else ""
    print(f"{sequences} sequences of {mixed}: {wall / _STEPS / 1e3:.2f} ms a step{busy}")
    for name, microseconds in spent.most_common(16):
        print(f"  {microseconds / _STEPS:8.0f} us in {calls[name] / _STEPS:5.0f} calls: {name[:110]}")
    while not engine.idle:
        engine.step()


if __name__ == "__main__":
    main()
