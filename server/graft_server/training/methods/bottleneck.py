"""Bottleneck adapters: a small residual network behind each transformer block (Houlsby et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

from graft_plugins.method import Activation, AdapterMethod, BlockGraft, Graft
from graft_server.training.methods.anatomy import blocks, freeze, hidden_size
from graft_server.training.methods.checks import check_names, positive_int


class BottleneckOptions(BaseModel):
    """Options of ``bottleneck``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    r: int = Field(32, ge=1, le=4096, description="Width of the bottleneck.")
    activation: Activation = Field("relu", description="Non-linearity between the projections.")


class Bottleneck(AdapterMethod):
    """``h <- h + U act(D h + d) + u`` on the output of each block; U and u start at zero, so training starts from
    the base model itself."""

    name: ClassVar[str] = "bottleneck"
    description: ClassVar[str] = "A small residual network behind each transformer block (Houlsby et al. 2019)."
    options_model = BottleneckOptions

    def attach(self, model: Any, options: Any, *, seed: int) -> Any:
        import torch

        from graft_server.training.methods.network import TwoLayer

        freeze(model)
        width = hidden_size(model)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for block in blocks(model):
                like = next(block.parameters())
                network = TwoLayer(width, options.r, width, options.activation).to(like.device, like.dtype)
                block.add_module("graft_bottleneck", network)
                block.register_forward_hook(_add_network)
        model.graft_config = {"graft_method": self.name, **options.model_dump(mode="json")}
        return model

    def save(self, model: Any, folder: str) -> None:
        from graft_server.training.methods.network import save_networks

        save_networks(_networks(model), model.graft_config, folder)

    def load_state(self, model: Any, folder: str) -> None:
        from graft_server.training.methods.network import load_networks

        load_networks(_networks(model), folder)

    def compile(self, config: Mapping[str, Any], tensors: Mapping[str, Any], model: Any) -> list[Graft]:
        from graft_server.training.methods.network import network_names, read_activation, read_network

        rank = positive_int(config, "r")
        activation = read_activation(config)
        width = hidden_size(model)
        prefixes = [f"layers.{index}" for index in range(len(blocks(model)))]
        check_names(tensors, network_names(prefixes))
        return [
            BlockGraft(
                index,
                *read_network(tensors, prefix, width_in=width, rank=rank, width_out=width),
                activation=activation,
            )
            for index, prefix in enumerate(prefixes)
        ]


def _networks(model: Any) -> dict[str, Any]:
    return {f"layers.{index}": block.graft_bottleneck for index, block in enumerate(blocks(model))}


def _add_network(block: Any, _inputs: Any, output: Any) -> Any:
    # Some blocks return a tuple with the hidden state first.
    if isinstance(output, tuple):
        return (output[0] + block.graft_bottleneck(output[0]), *output[1:])
    return output + block.graft_bottleneck(output)
