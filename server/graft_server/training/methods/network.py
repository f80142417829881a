"""The two-layer network ``U act(D h + d) + u`` of our own methods, and its files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graft_plugins.method import Activation, AdapterFault
from graft_server.activations import ACTIVATIONS
from graft_server.training.methods.checks import check_names, check_tensor
from graft_server.training.methods.detect import CONFIG, WEIGHTS

_PARTS = ("down.weight", "down.bias", "up.weight", "up.bias")


class TwoLayer(nn.Module):
    """``U act(D h + d) + u``, from ``[..., width_in]`` to ``[..., width_out]``; zero at the start, because U and u
    are."""

    def __init__(self, width_in: int, rank: int, width_out: int, activation: Activation) -> None:
        super().__init__()
        self.down = nn.Linear(width_in, rank)
        self.up = nn.Linear(rank, width_out)
        self.activation = ACTIVATIONS[activation]
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.up(self.activation(self.down(hidden)))  # type: ignore[no-any-return]


def save_networks(networks: Mapping[str, TwoLayer], config: Mapping[str, Any], folder: str) -> None:
    """Write the networks' parameters as ``PREFIX.down.weight`` and so on, and the configuration beside them."""
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{prefix}.{part}": network.get_parameter(part).detach().contiguous()
        for prefix, network in networks.items()
        for part in _PARTS
    }
    save_file(tensors, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(dict(config), indent=2) + "\n", encoding="utf-8")


def load_networks(networks: Mapping[str, TwoLayer], folder: str) -> None:
    """Read what ``save_networks`` wrote into networks of the same shapes.

    Raises:
        AdapterFault: a tensor is missing, unknown or of another shape.
    """
    from safetensors.torch import load_file

    tensors = load_file(Path(folder) / WEIGHTS)
    check_names(tensors, [f"{prefix}.{part}" for prefix in networks for part in _PARTS])
    with torch.no_grad():
        for prefix, network in networks.items():
            for part in _PARTS:
                parameter = network.get_parameter(part)
                name = f"{prefix}.{part}"
                parameter.copy_(check_tensor(name, tensors[name], parameter.shape))


def read_network(
    tensors: Mapping[str, Any], prefix: str, *, width_in: int, rank: int, width_out: int
) -> tuple[Any, Any, Any, Any]:
    """``down [rank, width_in]``, ``down_bias [rank]``, ``up [width_out, rank]``, ``up_bias [width_out]``.

    Raises:
        AdapterFault: a tensor of another shape or with values that are not finite.
    """
    shapes = ([rank, width_in], [rank], [width_out, rank], [width_out])
    down, down_bias, up, up_bias = (
        check_tensor(f"{prefix}.{part}", tensors[f"{prefix}.{part}"], shape)
        for part, shape in zip(_PARTS, shapes, strict=True)
    )
    return down, down_bias, up, up_bias


def network_names(prefixes: list[str]) -> list[str]:
    """The names of all tensors of the networks with these prefixes."""
    return [f"{prefix}.{part}" for prefix in prefixes for part in _PARTS]


def read_activation(config: Mapping[str, Any]) -> Activation:
    """The ``activation`` field.

    Raises:
        AdapterFault: it is not one we know.
    """
    activation = config.get("activation")
    if activation not in ACTIVATIONS:
        raise AdapterFault(f"{CONFIG}: activation {activation!r} is unknown; there are {', '.join(ACTIVATIONS)}")
    return activation  # type: ignore[no-any-return]
