"""A resolved base model as a tokenizer and a frozen ``transformers`` model, on any device or on none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft_server.base_model.errors import BaseModelError
from graft_server.base_model.source import BaseModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_tokenizer(base: BaseModel) -> PreTrainedTokenizerBase:
    """The base model's tokenizer.

    Raises:
        BaseModelError: the folder has none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base.path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"{base.path}: the tokenizer can't be loaded: {error}") from error


def load_model(base: BaseModel, *, dtype: str, device: str) -> PreTrainedModel:
    """The base model in evaluation mode, none of its parameters requiring a gradient.

    ``dtype`` is a torch dtype's name, e.g. ``bfloat16``; ``device`` e.g. ``cpu`` or ``cuda:1``.

    Raises:
        BaseModelError: the weights can't be read, do not fit the configuration, or do not fit the device.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    # Its bars would tear the server's log apart.
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            base.path, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
        )
        model = model.to(device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise BaseModelError(f"{base.path}: the model can't be loaded on {device}: {error}") from error
    return model.eval().requires_grad_(False)


def load_meta_model(base: BaseModel) -> PreTrainedModel:
    """The base model's modules and shapes on torch's ``meta`` device: no memory, no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base.path, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)
