"""The plugin API of graftwork: what a plugin author imports. It needs neither torch nor the server."""

from __future__ import annotations

from graft_plugins.errors import UnknownNameError
from graft_plugins.hookspecs import hookimpl
from graft_plugins.method import (
    AdapterFault,
    AdapterMethod,
    BlockGraft,
    Graft,
    LinearGraft,
    LogitGraft,
)
from graft_plugins.reader import DataError, DatasetReader, RawRow
from graft_plugins.router import RouteCandidate, RouteChoice, Router
from graft_plugins.task import (
    AnyTask,
    CandidateScore,
    Choices,
    Empty,
    Generate,
    Generation,
    JsonSchema,
    Message,
    Metric,
    Output,
    Prompt,
    Regex,
    Report,
    RequestError,
    RowError,
    Sampling,
    Score,
    Scores,
    Split,
    Task,
    ToolCall,
    TrainingPair,
)

__all__ = [
    "AdapterFault",
    "AdapterMethod",
    "AnyTask",
    "BlockGraft",
    "CandidateScore",
    "Choices",
    "DataError",
    "DatasetReader",
    "Empty",
    "Generate",
    "Generation",
    "Graft",
    "JsonSchema",
    "LinearGraft",
    "LogitGraft",
    "Message",
    "Metric",
    "Output",
    "Prompt",
    "RawRow",
    "Regex",
    "Report",
    "RequestError",
    "RouteCandidate",
    "RouteChoice",
    "Router",
    "RowError",
    "Sampling",
    "Score",
    "Scores",
    "Split",
    "Task",
    "ToolCall",
    "TrainingPair",
    "UnknownNameError",
    "hookimpl",
]
