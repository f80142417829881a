"""The base model on packed rows: one forward pass a step, for any transformers model with rotary or learned
positions and full or sliding-window attention."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable
from collections.abc import Sequence as Many
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from graft_server.base_model.structure import transformer_blocks
from graft_server.engine.base import EngineUnavailableError
from graft_server.engine.native.attention import native_attention
from graft_server.engine.native.norm import native_norm
from graft_server.engine.torch.attention import NAME, KVCache, LoneAttention, Step
from graft_server.engine.torch.batch import Batch, build_batch
from graft_server.engine.torch.block_pool import BlockPool
from graft_server.engine.torch.indexed import Products, check_products, require_close
from graft_server.engine.torch.mixer import Mixer
from graft_server.engine.torch.norms import Norm, fuse_norms, torch_norm
from graft_server.engine.torch.packed import pack_linears
from graft_server.engine.torch.rows import MixedRows
from graft_server.engine.torch.sequence import BASE, Chunk, Sequence
from graft_server.engine.torch.step_graphs import OFTEN, CudaGraphs, Record, StepGraphs

BLOCK_SIZE = 16
#: What ``_decoding`` takes.
_LEAST_BLOCKS = 6

logger = logging.getLogger(__name__)


class ModelRunner:
    """Owns the model, its KV cache and the mixed-adapter layers; one thread calls it."""

    def __init__(self, model: PreTrainedModel, *, kv_cache_bytes: int, cuda_graphs: bool = False) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.hidden_size = int(model.config.get_text_config().hidden_size)
        _refuse_unservable(model)
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        self.mixer = Mixer(model, blocks=transformer_blocks(model), head=head)
        #: Replays steps of few tokens, where that has been begun.
        self.graphs: StepGraphs | None = None
        self._step = Step(KVCache(1, BLOCK_SIZE, self.dtype, self.device))
        norm: Norm | None = torch_norm if self.device.type == "cuda" else None
        if self.device.type == "cpu":
            self._step.lone, norm = native_attention(self.dtype), native_norm(self.dtype)
        bytes_per_token = self._try_out(head)
        if norm is not None:
            fuse_norms(model, norm, self._tolerance / 10)
        blocks = max(_LEAST_BLOCKS, kv_cache_bytes // (bytes_per_token * BLOCK_SIZE))
        self.pool = BlockPool(blocks, BLOCK_SIZE)
        # One block more: recorded steps write their padding there.
        self._step.cache = KVCache(blocks + 1, BLOCK_SIZE, self.dtype, self.device)
        if cuda_graphs and self.device.type == "cuda":
            self._try_graphs()

    def replay_steps(self, record: Record, products: Products, attention: LoneAttention) -> None:
        """From now on record steps of few tokens and replay them."""
        self._step.lone = attention
        self.graphs = StepGraphs(
            self._mixed,
            self.mixer,
            products,
            record,
            scratch_block=self.pool.total,
            block_size=BLOCK_SIZE,
            device=self.device,
        )

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> tuple[list[tuple[Chunk, int]], torch.Tensor]:
        """Compute one step. Returns the wanted logits, ``[N, vocabulary]``, and of each the chunk and the index of its
        token."""
        chunks = self._in_order(chunks)
        replayed = None if self.graphs is None else self.graphs.logits(chunks)
        if replayed is not None:
            wanted = [(chunk, chunk.end - 1) for chunk in chunks if chunk.finishes]
            if len(wanted) < len(chunks):
                replayed = replayed[[i for i, chunk in enumerate(chunks) if chunk.finishes]]
            return wanted, replayed
        batch = self._begin(chunks)
        if not batch.wanted:
            self._decoder(batch)
            return [], torch.empty(0, device=self.device)
        return batch.wanted, self._logits(batch)

    @torch.inference_mode()
    def hidden(self, chunks: list[Chunk]) -> torch.Tensor:
        """Last hidden states of one step's rows, ``[T, hidden]``, in the order of the chunks' adapters."""
        hidden: torch.Tensor = self._decoder(self._begin(self._in_order(chunks))).last_hidden_state[0]
        return hidden

    def _in_order(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks as the mixer wants their rows, which has their adapters side by side now."""
        self.mixer.use({chunk.sequence.adapter for chunk in chunks})
        return sorted(chunks, key=lambda chunk: self.mixer.order(chunk.sequence.adapter))

    def _begin(self, chunks: list[Chunk]) -> Batch:
        # On a GPU rows by themselves are for recordings, which have few sizes.
        lone = self._step.lone is not None and self.device.type == "cpu"
        batch = self._step.batch = build_batch(chunks, block_size=BLOCK_SIZE, device=self.device, lone=lone)
        self.mixer.begin(batch.adapters, batch.logit_adapters, self.device)
        return batch

    def _mixed(self, batch: Batch, rows: Many[MixedRows], logit_rows: Many[MixedRows]) -> torch.Tensor:
        """The wanted logits of a batch whose rows are mixed as given."""
        self._step.batch = batch
        self.mixer.begin_rows(rows, logit_rows)
        return self._logits(batch)

    def _logits(self, batch: Batch) -> torch.Tensor:
        output = self.model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            graft_step=self._step,
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def _decoder(self, batch: Batch) -> Any:
        return self.model.get_decoder()(
            input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, graft_step=self._step
        )

    @torch.inference_mode()
    def _try_out(self, head: nn.Module) -> int:
        """Join and pack the linear modules, and compare: one short prompt through the model as it was, and through what
        it is now, at once and with its last token in a step of its own, as a model computes it that keeps more than
        keys and values. Refuses a model on which these differ, and returns the bytes of KV cache a token takes."""
        count = BLOCK_SIZE
        tokens = [(7 * i + 3) % int(self.model.config.get_text_config().vocab_size) for i in range(count)]
        prompt = torch.tensor([tokens], device=self.device)
        plain: list[torch.Tensor] = []
        linears = self.mixer.join_linears(lambda: plain.append(self.model(input_ids=prompt, use_cache=False).logits[0]))
        if self.device.type == "cuda":
            # The weights that were joined are given back to the device: the cache is to have them.
            torch.cuda.empty_cache()
        pack_linears([head, *(module for module in linears if module is not head)])
        self.model.set_attn_implementation(NAME)
        sequence = Sequence("try-out", BASE, tokens, logits_at=frozenset(range(count)), blocks=[0])
        decoding = Sequence("try-out, decoding", BASE, tokens, blocks=[0])
        try:
            _, logits = self.forward([Chunk(sequence, 0, count)])
            self.forward([Chunk(decoding, 0, count - 1)])
            _, last = self.forward([Chunk(decoding, count - 1, 1)])
        except (AssertionError, TypeError, RuntimeError) as error:
            raise EngineUnavailableError(
                f"{self.model.config.model_type} models can't run on paged attention: {error}"
            ) from error
        expected, logits = torch.cat([*plain, plain[0][-1:]]), torch.cat([logits, last])
        scale = expected.float().abs().max()
        difference = (logits.float() - expected.float()).abs().max() / scale
        tolerance = self._tolerance
        layers = int(self.model.config.get_text_config().num_hidden_layers)
        if self._step.cache.layers != layers or not difference < tolerance:
            raise EngineUnavailableError(
                f"{self.model.config.model_type} models can't run on paged attention: "
                f"{self._step.cache.layers} of {layers} layers use it, and logits differ by {difference:.3g}"
            )
        return self._step.cache.bytes_per_token

    @property
    def _tolerance(self) -> float:
        """By how much logits may differ between two ways to compute them, as a part of the largest."""
        return 1e-3 if self.dtype == torch.float32 else 0.1

    @torch.inference_mode()
    def _try_graphs(self) -> None:
        """Replay steps from now on if that gives the same logits here and is faster."""
        try:
            from graft_server.engine.torch.triton_attention import triton_attention
            from graft_server.engine.torch.triton_products import TritonProducts

            check_products(TritonProducts(), self.dtype, self.device, self._tolerance)
            chunks = self._decoding()
            _, expected = self.forward(chunks)
            usual = _seconds(lambda: self.forward(chunks))
            self.replay_steps(CudaGraphs(), TritonProducts(), triton_attention)
            for _ in range(OFTEN):
                self.forward(chunks)
            replayed = _seconds(lambda: self.forward(chunks))
            assert self.graphs is not None
            assert self.graphs.replays
            _, logits = self.forward(chunks)
            require_close(logits, expected, self._tolerance)
        except Exception as error:  # whatever a driver, a compiler or a library has to say
            self.graphs = None
            logger.warning("steps are not replayed as CUDA graphs: %s", error)
            return
        if replayed >= usual:
            self.graphs = None
        logger.info(
            "a step of two sequences that decode takes %.1f ms, %.1f ms replayed as a CUDA graph",
            1e3 * usual,
            1e3 * replayed,
        )

    def _decoding(self) -> list[Chunk]:
        """Two sequences behind prompts of different lengths that are in the cache, for a step to try out."""
        chunks: list[Chunk] = []
        for i, length in enumerate((5, 2 * BLOCK_SIZE + 3)):
            tokens = [(11 * j + 5 * i + 2) % int(self.model.config.get_text_config().vocab_size) for j in range(length)]
            sequence = Sequence(f"try-out-{i}", BASE, tokens, blocks=list(range(3 * i, 3 * i + 3)))
            self.forward([Chunk(sequence, 0, length - 1)])
            chunks.append(Chunk(sequence, length - 1, 1))
        return chunks


def _seconds(compute: Callable[[], object]) -> float:
    """Of one call, the median of a few, on a CUDA device."""
    times: list[float] = []
    for _ in range(5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        compute()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _refuse_unservable(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        raise EngineUnavailableError(
            f"{config.model_type} models cap their attention logits, which the torch engine can't do yet"
        )
