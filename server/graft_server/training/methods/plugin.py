"""The built-in methods as a plugin, so that they come in by the same path as a third party's."""

from __future__ import annotations

from collections.abc import Callable

from graft_plugins.hookspecs import hookimpl
from graft_plugins.method import AdapterMethod
from graft_server.training.methods.bottleneck import Bottleneck
from graft_server.training.methods.lora import Dora, Lora, RsLora
from graft_server.training.methods.output_head import OutputHead


@hookimpl
def register_methods(register: Callable[[AdapterMethod], None]) -> None:
    """Register lora, rslora, dora, bottleneck and output-head."""
    for method in (Lora(), RsLora(), Dora(), Bottleneck(), OutputHead()):
        register(method)
