"""The plugins that come with the server, by the same path as anyone's: the adapter methods."""

from __future__ import annotations


def server_plugins() -> list[tuple[str, object]]:
    """Name and module of each, for ``PluginHost.load(extra=...)``."""
    from graft_server.training.methods import plugin

    return [("graft-methods", plugin)]
