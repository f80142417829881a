"""The plugins that come with graftwork. They are loaded by name, through the same path as any other."""

from __future__ import annotations

BUILTIN_PLUGINS: tuple[str, ...] = (
    "graft_plugins.tasks.translation",
    "graft_plugins.tasks.domain_qa",
    "graft_plugins.tasks.recommendation",
    "graft_plugins.tasks.chat",
    "graft_plugins.readers.jsonl",
    "graft_plugins.readers.delimited",
    "graft_plugins.readers.parallel_text",
    "graft_plugins.readers.po",
    "graft_plugins.readers.tmx",
    "graft_plugins.readers.squad",
    "graft_plugins.readers.recbole",
    "graft_plugins.readers.movielens",
)
