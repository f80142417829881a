"""The base model on packed rows: one forward pass a step, for any transformers model with rotary or learned
positions and full or sliding-window attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from graft_server.base_model.structure import transformer_blocks
from graft_server.engine.base import EngineUnavailableError
from graft_server.engine.torch.attention import NAME, KVCache, Step
from graft_server.engine.torch.batch import Batch, build_batch
from graft_server.engine.torch.block_pool import BlockPool
from graft_server.engine.torch.mixer import Mixer
from graft_server.engine.torch.sequence import BASE, Chunk, Sequence

BLOCK_SIZE = 16


class ModelRunner:
    """Owns the model, its KV cache and the mixed-adapter layers; one thread calls it."""

    def __init__(self, model: PreTrainedModel, *, kv_cache_bytes: int) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.dtype = next(model.parameters()).dtype
        self.hidden_size = int(model.config.get_text_config().hidden_size)
        _refuse_unservable(model)
        head = model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        self.mixer = Mixer(model, blocks=transformer_blocks(model), head=head)
        self._step = Step(KVCache(1, BLOCK_SIZE, self.dtype, self.device))
        bytes_per_token = self._try_out()
        blocks = max(2, kv_cache_bytes // (bytes_per_token * BLOCK_SIZE))
        self.pool = BlockPool(blocks, BLOCK_SIZE)
        self._step.cache = KVCache(blocks, BLOCK_SIZE, self.dtype, self.device)

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> tuple[Batch, torch.Tensor]:
        """Compute one step. Returns its batch and the wanted logits, ``[N, vocabulary]``."""
        batch = self._begin(chunks)
        if not batch.wanted:
            self._decoder(batch)
            return batch, torch.empty(0, device=self.device)
        output = self.model(
            input_ids=batch.tokens,
            position_ids=batch.positions,
            use_cache=False,
            logits_to_keep=batch.logit_rows,
            graft_step=self._step,
        )
        return batch, output.logits[0]

    @torch.inference_mode()
    def hidden(self, chunks: list[Chunk]) -> torch.Tensor:
        """Last hidden states of one step's rows, ``[T, hidden]``, in the order of the chunks' adapters."""
        hidden: torch.Tensor = self._decoder(self._begin(chunks)).last_hidden_state[0]
        return hidden

    def _begin(self, chunks: list[Chunk]) -> Batch:
        self.mixer.use({chunk.sequence.adapter for chunk in chunks})
        batch = build_batch(chunks, block_size=BLOCK_SIZE, device=self.device, order=self.mixer.order)
        self._step.batch = batch
        self.mixer.begin(batch.adapters, batch.logit_adapters, self.device)
        return batch

    def _decoder(self, batch: Batch) -> Any:
        return self.model.get_decoder()(
            input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, graft_step=self._step
        )

    @torch.inference_mode()
    def _try_out(self) -> int:
        """One short prompt through the model's own attention and through ours: refuses a model on which the two
        differ, learns which layers share inputs, and returns the bytes of KV cache a token takes."""
        count = BLOCK_SIZE
        tokens = [(7 * i + 3) % int(self.model.config.get_text_config().vocab_size) for i in range(count)]
        expected = self.model(input_ids=torch.tensor([tokens], device=self.device), use_cache=False).logits[0]
        self.model.set_attn_implementation(NAME)
        sequence = Sequence("try-out", BASE, tokens, logits_at=frozenset(range(count)), blocks=[0])
        stop_watching = self.mixer.watch_inputs()
        try:
            _, logits = self.forward([Chunk(sequence, 0, count)])
        except (AssertionError, TypeError, RuntimeError) as error:
            raise EngineUnavailableError(
                f"{self.model.config.model_type} models can't run on paged attention: {error}"
            ) from error
        finally:
            stop_watching()
        scale = expected.float().abs().max()
        difference = (logits.float() - expected.float()).abs().max() / scale
        tolerance = 1e-3 if self.dtype == torch.float32 else 0.1
        layers = int(self.model.config.get_text_config().num_hidden_layers)
        if self._step.cache.layers != layers or not difference < tolerance:
            raise EngineUnavailableError(
                f"{self.model.config.model_type} models can't run on paged attention: "
                f"{self._step.cache.layers} of {layers} layers use it, and logits differ by {difference:.3g}"
            )
        return self._step.cache.bytes_per_token


def _refuse_unservable(model: PreTrainedModel) -> None:
    config = model.config.get_text_config()
    if getattr(config, "attn_logit_softcapping", None):
        raise EngineUnavailableError(
            f"{config.model_type} models cap their attention logits, which the torch engine can't do yet"
        )
