"""The Triton kernels against plain torch. For a process of their own: Triton looks at its environment when it is
imported, and without a GPU its interpreter must be asked for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from graft_server.engine.base import GenerateRequest, PromptInput, SamplingParams
from graft_server.engine.messages import EngineConfig
from graft_server.engine.torch.engine import TorchEngine
from graft_server.engine.torch.indexed import RowIndex, check_products, require_close
from graft_server.engine.torch.stack import Part
from graft_server.engine.torch.triton_attention import triton_attention
from graft_server.engine.torch.triton_products import TritonProducts
from support.adapters import methods
from support.plain_models import PlainModels
from support.recorder import Recorder, drain

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: The interpreter can't multiply bfloat16.
HALF = torch.bfloat16 if torch.cuda.is_available() else torch.float16
TOLERANCES = ((torch.float32, 1e-5), (HALF, 0.03))


def check_all_products() -> None:
    for dtype, tolerance in TOLERANCES:
        check_products(TritonProducts(), dtype, DEVICE, tolerance)

    class Wrong(TritonProducts):
        def expand_add(
            self, output: torch.Tensor, hidden: torch.Tensor, up: torch.Tensor, parts: tuple[Part, ...], index: RowIndex
        ) -> None:
            super().expand_add(output, hidden, up.roll(1, 0), parts, index)

    try:
        check_products(Wrong(), torch.float32, DEVICE, 1e-5)
    except ArithmeticError as error:
        print("refused:", error)


def check_attention() -> None:
    """Contexts of one part and of several, whole and behind a window, with heads whose sizes are no powers of two."""
    random = torch.Generator().manual_seed(0)

    def tensor(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(*shape, generator=random).to(DEVICE, dtype)

    for dtype, tolerance in TOLERANCES:
        query = tensor(4, 9, 24, dtype=dtype)
        keys, values = tensor(300, 16, 3, 24, dtype=dtype), tensor(300, 16, 3, 40, dtype=dtype)
        for width, lengths in ((8, [1, 17, 64, 128]), (64, [1, 1000, 700, 257])):
            blocks = torch.randint(0, 300, (4, width), dtype=torch.int32, generator=random).to(DEVICE)
            seen = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
            for window in (None, 40, 300):
                got = triton_attention(query, keys, values, blocks, seen, scale=0.2, window=window)
                for row, length in enumerate(lengths):
                    places = slice(max(0, length - (window or length)), length)
                    k, v = (kept[blocks[row].long()].flatten(0, 1)[places].transpose(0, 1) for kept in (keys, values))
                    expected = torch.nn.functional.scaled_dot_product_attention(
                        query[row].view(3, 3, 24).float(), k.float(), v.float(), scale=0.2
                    )
                    require_close(got[row], expected.view(9, 40), tolerance)
                print("equal:", dtype, width, window)


class Again:
    """A recording that computes anew: what the interpreter does is no operation of torch that could be recorded."""

    def __init__(self, compute: Callable[[], torch.Tensor]) -> None:
        self._compute = compute
        self.result = compute()

    def replay(self) -> None:
        self.result.copy_(self._compute())


def record_again(compute: Callable[[], torch.Tensor]) -> tuple[Again, torch.Tensor]:
    again = Again(compute)
    return again, again.result


def check_engine() -> None:
    """An engine whose steps run on the kernels gives the plain models' answers, prompts in pieces included."""
    kinds: list[tuple[str, dict[str, Any]]] = [("lora", {"r": 4}), ("dora", {"r": 16}), ("rslora", {"r": 8})]
    prompts = ("Turn off the lights in the kitchen, please.", "Hello")
    with tempfile.TemporaryDirectory() as folder:
        models = PlainModels(Path(folder), kinds)
        events = Recorder()
        config = EngineConfig(
            "torch", str(models.base.path), "", device="cpu", dtype="float32", kv_cache_mib=16, max_batch_tokens=33
        )
        engine = TorchEngine(models.base, config, methods(), events)
        engine.runner.replay_steps(record_again, TritonProducts(), triton_attention)
        asked = [(adapter, prompt) for prompt in prompts for adapter in range(len(kinds) + 1)]
        for i, (adapter, prompt) in enumerate(asked):
            sampling = SamplingParams(max_tokens=10, ignore_eos=True)
            engine.submit(GenerateRequest(str(i), PromptInput(text=prompt), sampling, models.adapters[adapter]))
        drain(engine)
        assert not events.errors
        for i, (adapter, prompt) in enumerate(asked):
            assert events.text(str(i)) == models.answer(adapter, prompt, 10), (adapter, prompt)
        assert engine.runner.graphs is not None
        print("replayed:", engine.runner.graphs.replays)
