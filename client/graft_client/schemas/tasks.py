"""Tasks, adapter methods, dataset formats and plugins."""

from __future__ import annotations

from typing import Any

from graft_client.schemas.common import Schema


class OptionInfo(Schema):
    """One setting of training or of a method, for ``--set``."""

    name: str
    type: str
    default: Any = None
    description: str = ""


class TaskInfo(Schema):
    name: str
    title: str
    description: str
    plugin: str
    formats: list[str]
    training_defaults: dict[str, Any]
    example_request: dict[str, Any]
    example_schema: dict[str, Any]
    request_schema: dict[str, Any]
    response_schema: dict[str, Any]


class MethodInfo(Schema):
    name: str
    description: str
    plugin: str
    options: list[OptionInfo]


class FormatInfo(Schema):
    name: str
    description: str
    plugin: str
    tasks: list[str]


class TrainingInfo(Schema):
    """What ``graft train --set`` takes."""

    options: list[OptionInfo]
    methods: list[MethodInfo]
    formats: list[FormatInfo]


class PluginFault(Schema):
    """A plugin, or one thing it registers, that was left out."""

    plugin: str
    hook: str | None = None
    file: str | None = None
    line: int | None = None
    error: str


class PluginInfo(Schema):
    name: str
    version: str | None = None
    built_in: bool = False
    tasks: list[str] = []
    readers: list[str] = []
    methods: list[str] = []
    routers: list[str] = []
    observes: list[str] = []


class PluginList(Schema):
    plugins: list[PluginInfo]
    faults: list[PluginFault]
