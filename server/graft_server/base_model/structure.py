"""Where things are inside a transformers causal language model, whatever its architecture calls them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graft_server.base_model.errors import BaseModelError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


def transformer_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The model's transformer blocks in order: the one list of modules as long as the configuration says.

    Raises:
        BaseModelError: there is no such list.
    """
    from torch import nn

    count = int(model.config.get_text_config().num_hidden_layers)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise BaseModelError(f"{model.config.model_type} models have no list of {count} transformer blocks")
