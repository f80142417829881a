"""Faster forms of what a training step computes most: LoRA's linear layers, and attention on a CPU.

They compute what PEFT and torch compute, with fewer passes over memory. LoRA: the update is accumulated into the
layer's output and into the input's gradient by the matrix products themselves, instead of in tensors of their own.
Attention: for short sequences two plain batched products beat torch's fused CPU kernel, whose backward is slow.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch.nn import functional

_ATTENTION = "graft_short"
#: Longest sequence for which the attention matrix is kept for the backward pass.
_SHORT = 256


def speed_up(model: Any) -> None:
    """Swap the slow parts of an attached model, in place. Leaves alone what it does not know."""
    from peft.tuners.lora import Linear

    for module in model.modules():
        if type(module) is Linear and module.active_adapters == ["default"]:
            variant = "default" in module.lora_variant
            if not variant:
                module.forward = partial(_lora_forward, module)
            elif module.use_dora["default"]:
                norm = torch.linalg.vector_norm(module.base_layer.weight.detach().float(), dim=1).square_()
                module.forward = partial(_dora_forward, module, norm)
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu and model.config._attn_implementation == "sdpa":
        _register_attention()
        model.set_attn_implementation(_ATTENTION)


def _lora_forward(layer: Any, inputs: torch.Tensor) -> torch.Tensor:
    return _updated(layer, inputs, layer.base_layer.bias)


def _dora_forward(layer: Any, base_norm_squared: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """DoRA with its norm in fp32; the norm is a constant to the gradient (Liu et al. 2024, section 4.3)."""
    magnitude = layer.lora_magnitude_vector["default"].weight
    with torch.no_grad():
        norm = _updated_norm(layer, base_norm_squared)
    scaled: torch.Tensor = (_updated(layer, inputs, None) * (magnitude / norm)).to(inputs.dtype)
    bias = layer.base_layer.bias
    if bias is not None:
        scaled = scaled + bias
    return scaled


def _updated_norm(layer: Any, base_norm_squared: torch.Tensor) -> torch.Tensor:
    """``||W + s B A||`` of each row, ``[out]``, from products with the rank in them only:
    ``||w||^2 + 2 s b . (A w) + s^2 b' A A' b``."""
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight.float()
    scaling = layer.scaling["default"]
    cross = (layer.base_layer.weight @ a.t()).float()
    gram = a.float() @ a.float().t()
    squared: torch.Tensor = base_norm_squared + (b * (2 * scaling * cross + scaling**2 * (b @ gram))).sum(dim=1)
    return squared.clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()


def _updated(layer: Any, inputs: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    dropped = layer.lora_dropout["default"](inputs)
    return _LoraLinear.apply(  # type: ignore[no-any-return,no-untyped-call]
        inputs,
        None if dropped is inputs else dropped,
        layer.base_layer.weight,
        bias,
        layer.lora_A["default"].weight,
        layer.lora_B["default"].weight,
        layer.scaling["default"],
    )


class _LoraLinear(torch.autograd.Function):
    """``x W' + bias + s (z A') B'`` with a frozen W, where z is x unless there is dropout."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        x = inputs.reshape(-1, inputs.shape[-1])
        z = x if dropped is None else dropped.reshape(x.shape)
        output = functional.linear(x, weight, bias)
        low = z @ a.t()
        output.addmm_(low, b.t(), alpha=scaling)
        ctx.save_for_backward(z, low, weight, a, b)
        ctx.scaling, ctx.shape, ctx.separate = scaling, inputs.shape, dropped is not None
        return output.view(*inputs.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> tuple[Any, ...]:
        z, low, weight, a, b = ctx.saved_tensors
        dy = upstream.reshape(-1, upstream.shape[-1])
        dlow = (dy @ b).mul_(ctx.scaling)
        da = dlow.t() @ z
        db = (dy.t() @ low).mul_(ctx.scaling)
        dx = dz = None
        if ctx.needs_input_grad[0]:
            dx = dy @ weight
            if not ctx.separate:
                dx.addmm_(dlow, a)
            dx = dx.view(ctx.shape)
        if ctx.separate and ctx.needs_input_grad[1]:
            dz = (dlow @ a).view(ctx.shape)
        return dx, dz, None, None, da, db, None


def _register_attention() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_ATTENTION, sdpa_mask)


def _attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """``query [rows, heads, length, width]``, ``key`` and ``value`` with as many heads or fewer; as sdpa."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    length = query.shape[2]
    # Only the plain causal case: a mask, dropout or any extra (a sliding window, a position bias) is left to sdpa.
    plain = attention_mask is None and dropout == 0.0 and kwargs.get("is_causal") is not False
    plain = plain and getattr(module, "is_causal", True) and kwargs.get("position_bias") is None
    if not plain or not 1 < length <= _SHORT or key.shape[2] != length:
        return sdpa_attention_forward(  # type: ignore[no-any-return]
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = 1 / math.sqrt(query.shape[-1]) if scaling is None else scaling
    future = torch.full((length, length), -math.inf, dtype=query.dtype, device=query.device).triu_(1)
    scores = torch.matmul(query * scale, key.transpose(-1, -2)) + future
    # The softmax computes in fp32 inside whatever type it is given.
    mixed = torch.matmul(scores.softmax(dim=-1), value)
    return mixed.transpose(1, 2).contiguous(), None
