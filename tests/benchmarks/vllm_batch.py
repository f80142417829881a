"""Eight adapters mixed in one batch of 64 on vLLM, with our wrapper, over vLLM without LoRA and over its own wrapper.

Each side is an engine of its own in its own process, eager, warmed up by such a batch; 32 new tokens a sequence. The
base is measured without ``enable_lora``: what LoRA costs the base model itself is not hidden in the denominator.
The figures are generated tokens a second. All compute in the type that our server chooses: bfloat16 where the processor
multiplies it; elsewhere its products are several times as slow, and would hide what LoRA costs. Two more sides are the
torch engine's, for the choice between the engines.

    PYTHONPATH=tests python tests/benchmarks/vllm_batch.py --base-model FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from adapters import RANK, sources, write_adapters
from direct import DirectEngine, fresh_prompts
from options import Samples, parser, turns
from report import ratio, write_report

from graft_server.base_model.device import choose_dtype
from graft_server.bench.random_adapters import locate
from graft_server.children import engine_environment
from graft_server.engine.base import AdapterSource, GenerateRequest, PromptInput
from graft_server.engine.base import SamplingParams as Sampling
from graft_server.engine.vllm.plugin import SWITCH

ADAPTERS, SEQUENCES, TOKENS = 8, 64, 32
TORCH, TORCH_BASE = "torch", "torch base"
SIDES = ("base", "ours", "stock", TORCH, TORCH_BASE)


def measure(base: str, folder: Path, *, lora: bool) -> float:
    """Tokens a second of one batch, in this process."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    own: dict[str, Any] = {"enable_lora": True, "max_loras": ADAPTERS, "max_lora_rank": RANK, "max_cpu_loras": 64}
    llm = LLM(
        model=base,
        dtype=choose_dtype("auto", "cpu"),
        enforce_eager=True,
        max_num_seqs=SEQUENCES,
        max_model_len=1024,
        kv_cache_memory_bytes=1 << 30,
        **(own if lora else {}),
    )
    adapters = [LoRARequest(f"a{i}", i + 1, str(folder / str(i))) for i in range(ADAPTERS)] if lora else []
    rows = [adapters[i % ADAPTERS] for i in range(SEQUENCES)] if lora else None
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True, temperature=0.0)
    llm.generate(fresh_prompts(SEQUENCES), params, lora_request=rows, use_tqdm=False)
    prompts = fresh_prompts(SEQUENCES)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, lora_request=rows, use_tqdm=False)
    seconds = time.perf_counter() - started
    return sum(len(output.outputs[0].token_ids) for output in outputs) / seconds


def measure_torch(base: str, folder: Path, *, lora: bool) -> float:
    """The same of the torch engine."""
    dtype = choose_dtype("auto", "cpu")
    engine = DirectEngine(locate(base), dtype=dtype, max_slots=ADAPTERS, max_rank=RANK, kv_cache_mib=1024)
    adapters: list[AdapterSource | None] = [None]
    if lora:
        own = sources([folder / str(i) for i in range(ADAPTERS)], range(1, ADAPTERS + 1))
        engine.load(own)
        adapters = [*own]
    sampling = Sampling(max_tokens=TOKENS, ignore_eos=True)

    def seconds() -> float:
        return engine.seconds(
            [
                GenerateRequest(text, PromptInput(text=text), sampling, adapters[i % len(adapters)])
                for i, text in enumerate(fresh_prompts(SEQUENCES))
            ]
        )

    seconds()
    return SEQUENCES * TOKENS / seconds()


def in_child(base: str, folder: Path, side: str) -> float:
    command = [sys.executable, __file__, "--base-model", base, "--side", side, "--adapters", str(folder)]
    environment = {**engine_environment(), SWITCH: "0" if side == "stock" else "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    own = parser(__doc__)
    own.set_defaults(pairs=1)
    own.add_argument("--side", choices=SIDES, help="measure this one only, here")
    own.add_argument("--adapters", type=Path, help="their folder, with --side")
    arguments = own.parse_args()
    if arguments.side:
        measured = measure_torch if arguments.side in (TORCH, TORCH_BASE) else measure
        lora = arguments.side not in ("base", TORCH_BASE)
        print(json.dumps(measured(arguments.base_model, arguments.adapters, lora=lora)))
        return
    base = locate(arguments.base_model)
    speeds = Samples()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "adapters"
        write_adapters(base, folder, ADAPTERS)
        for _, side in turns(arguments.pairs, SIDES):
            speeds.add(side, in_child(str(base.path), folder, side), "tokens/s")
    figures = [
        ratio("vllm_mixed8_over_base", speeds["ours"], speeds["base"]),
        ratio("vllm_mixed8_over_stock", speeds["ours"], speeds["stock"]),
        ratio("vllm_mixed8_over_torch", speeds["ours"], speeds[TORCH]),
        ratio("vllm_base_over_torch", speeds["base"], speeds[TORCH_BASE]),
    ]
    write_report("vllm_batch", figures)


if __name__ == "__main__":
    main()
