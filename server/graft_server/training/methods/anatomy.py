"""The parts of a ``transformers`` causal language model that methods and the trainer attach to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graft_plugins.method import AdapterFault
from graft_server.base_model.errors import BaseModelError
from graft_server.base_model.structure import transformer_blocks

if TYPE_CHECKING:
    from torch import nn


def freeze(model: Any) -> None:
    """Let no parameter of ``model`` require a gradient, and switch dropout of the base off."""
    model.requires_grad_(False)
    model.eval()


def blocks(model: Any) -> list[nn.Module]:
    """The transformer blocks in order.

    Raises:
        AdapterFault: the model has no such list.
    """
    try:
        return transformer_blocks(model)
    except BaseModelError as error:
        raise AdapterFault(str(error)) from error


def hidden_size(model: Any) -> int:
    """Width of the hidden states."""
    return int(model.config.get_text_config().hidden_size)


def output_head(model: Any) -> Any:
    """The linear layer from the last hidden state to the vocabulary (``[vocabulary, hidden]``).

    Raises:
        AdapterFault: the model has none.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise AdapterFault(f"{model.config.model_type} models have no output layer that adapters can attach to")
    return head
