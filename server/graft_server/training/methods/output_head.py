"""Output-head adapters: a small network from the last hidden state whose output is added to the base's logits.

The body of the model is left alone, so nothing is propagated back through it and its hidden states can be shared
by all adapters of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from graft_plugins.method import AdapterMethod, Graft, LogitGraft
from graft_server.training.methods.anatomy import freeze, hidden_size, output_head
from graft_server.training.methods.checks import check_names, positive_int

_PREFIX = "head"


class OutputHeadOptions(BaseModel):
    """Options of ``output-head``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(64, ge=1, le=4096, description="Width between the two linear layers.")


class OutputHead(AdapterMethod):
    """``logits <- logits + U relu(D h + d) + u``; U and u start at zero, so training starts from the base model."""

    name: ClassVar[str] = "output-head"
    description: ClassVar[str] = (
        "A trained Linear, ReLU, Linear from the last hidden state, added to the base's logits."
    )
    options_model = OutputHeadOptions

    def attach(self, model: Any, options: Any, *, seed: int) -> Any:
        import torch

        from graft_server.training.methods.network import TwoLayer

        freeze(model)
        head = output_head(model)
        vocabulary = int(head.weight.shape[0])
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = TwoLayer(hidden_size(model), options.r, vocabulary, "relu")
        head.graft_head = network.to(head.weight.device, head.weight.dtype)
        head.register_forward_hook(_add_network)
        model.graft_config = {"graft_method": self.name, "activation": "relu", **options.model_dump(mode="json")}
        return model

    def save(self, model: Any, folder: str) -> None:
        from graft_server.training.methods.network import save_networks

        save_networks({_PREFIX: output_head(model).graft_head}, model.graft_config, folder)

    def load_state(self, model: Any, folder: str) -> None:
        from graft_server.training.methods.network import load_networks

        load_networks({_PREFIX: output_head(model).graft_head}, folder)

    def compile(self, config: Mapping[str, Any], tensors: Mapping[str, Any], model: Any) -> list[Graft]:
        from graft_server.training.methods.network import network_names, read_activation, read_network

        rank = positive_int(config, "r")
        activation = read_activation(config)
        vocabulary = int(output_head(model).weight.shape[0])
        check_names(tensors, network_names([_PREFIX]))
        parts = read_network(tensors, _PREFIX, width_in=hidden_size(model), rank=rank, width_out=vocabulary)
        return [LogitGraft(*parts, activation=activation)]


def _add_network(head: Any, inputs: Any, logits: Any) -> Any:
    return logits + head.graft_head(inputs[0])
