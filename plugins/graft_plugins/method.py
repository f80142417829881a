"""What an adapter method is, for training and for serving.

A method puts trainable parameters into a frozen base model and, once trained, *compiles* its weights into a
few primitive operations. An engine that knows the primitives can serve every method, and rows of different
methods in one batch. Tensors are typed ``Any`` here so that this package never imports torch.

The primitives, for a row ``x`` of one adapter (``act`` is a non-linearity or the identity):

- ``LinearGraft``: ``y = output_scale * (W x + b_lora(x)) + bias`` with ``b_lora(x) = scaling * B (A x)``
- ``BlockGraft``:  ``h <- h + U act(D h + d) + u``  on the output of a transformer block
- ``LogitGraft``:  ``logits <- logits + U act(D h + d) + u``  from the last hidden state ``h``
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import BaseModel

Activation = Literal["identity", "relu", "gelu", "silu", "tanh"]


@dataclass(frozen=True, slots=True)
class LinearGraft:
    """A low-rank update of one linear layer, and optionally a scale of its output (Hu et al. 2021; DoRA: Liu
    et al. 2024)."""

    #: Dotted name of the linear module inside the base model, e.g. ``model.layers.0.self_attn.q_proj``.
    module: str
    #: ``[rank, in_features]``
    a: Any
    #: ``[out_features, rank]``
    b: Any
    scaling: float
    #: ``[out_features]`` or ``None``; multiplies the layer's output before its bias.
    output_scale: Any | None = None


@dataclass(frozen=True, slots=True)
class BlockGraft:
    """A bottleneck behind one transformer block (Houlsby et al. 2019)."""

    #: Index of the block, from 0.
    layer: int
    #: ``[rank, hidden]``, ``[rank]``
    down: Any
    down_bias: Any
    #: ``[hidden, rank]``, ``[hidden]``
    up: Any
    up_bias: Any
    activation: Activation = "relu"


@dataclass(frozen=True, slots=True)
class LogitGraft:
    """A small network whose output is added to the base model's logits."""

    #: ``[rank, hidden]``, ``[rank]``
    down: Any
    down_bias: Any
    #: ``[vocabulary, rank]``, ``[vocabulary]``
    up: Any
    up_bias: Any
    activation: Activation = "relu"


Graft = LinearGraft | BlockGraft | LogitGraft


class AdapterFault(ValueError):  # noqa: N818 - it describes files, not a failed call
    """Adapter files that can't be served: one sentence with the file, the tensor or the field at fault."""


class AdapterMethod(ABC):
    """How an adapter is built. Register an instance through the ``register_methods`` hook."""

    #: The name in configurations and on the command line, e.g. ``lora``.
    name: ClassVar[str]
    #: One sentence for listings, with the paper it follows.
    description: ClassVar[str]
    #: The method's own hyperparameters, with defaults and descriptions.
    options_model: type[BaseModel]

    @abstractmethod
    def attach(self, model: Any, options: Any, *, seed: int) -> Any:
        """Freeze ``model`` (a ``transformers`` causal LM), add the method's parameters, return what to train.

        The result has the same ``forward``; only the method's parameters require a gradient.

        Raises:
            AdapterFault: the options do not fit the model, e.g. a target module that it does not have.
        """

    @abstractmethod
    def save(self, model: Any, folder: str) -> None:
        """Write the trained parameters of what ``attach`` returned: ``adapter_config.json`` and
        ``adapter_model.safetensors``, nothing pickled."""

    @abstractmethod
    def load_state(self, model: Any, folder: str) -> None:
        """Read what ``save`` wrote back into what ``attach`` returned, to go on training."""

    @abstractmethod
    def compile(self, config: Mapping[str, Any], tensors: Mapping[str, Any], model: Any) -> Iterable[Graft]:
        """An adapter's files as primitive operations on ``model``, the base model.

        A generator that checks and yields one at a time lets a server that is busy decoding take its time over it.

        ``config`` is ``adapter_config.json``; ``tensors`` the content of ``adapter_model.safetensors``. ``model``
        may live on torch's ``meta`` device; DoRA needs its weights and gets a real one.

        Raises:
            AdapterFault: a missing, unknown, wrongly shaped or non-finite tensor; a rank that disagrees with
                the configuration; or no module of the model matched.
        """

    def rank(self, config: Mapping[str, Any]) -> int:
        """The largest rank the adapter uses, from its configuration."""
        return int(config.get("r", 0))
