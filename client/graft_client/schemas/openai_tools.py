"""Functions that a chat's model may call, in the shapes of OpenAI's public API reference."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from graft_client.schemas.common import Schema


class FunctionDefinition(Schema):
    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="The JSON schema of its arguments.")
    strict: bool | None = None


class Tool(Schema):
    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(Schema):
    name: str


class NamedToolChoice(Schema):
    """This function is to be called."""

    type: Literal["function"]
    function: FunctionName


class FunctionCall(Schema):
    name: str
    arguments: str = Field(description="A JSON object as text.")


class ToolCallItem(Schema):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
