"""Making a key by whoever may write the data folder: how the first one comes about, and the way back in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from graft_client.errors import GraftError, UsageError
from graft_client.schemas.keys import KeyCreate, NewKey
from graft_server.access.making import make_key
from graft_server.config import load_database_url
from graft_server.registry import Registry, RegistryError
from graft_server.registry.visibility import actor


def create_key(data_dir: Path, **fields: Any) -> NewKey:
    """Make a key in the registry of a data folder, whether or not its server runs; in PostgreSQL where the setting
    ``database_url`` says so (in the environment or in ``graft.toml``).

    Raises:
        UsageError: a field is wrong.
        GraftError: the registry can't be opened, or refuses the key.
    """
    try:
        body = KeyCreate(**fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    token = actor.set("the command line")
    try:
        registry = Registry.open(data_dir, load_database_url())
        try:
            return make_key(registry, body)
        finally:
            registry.close()
    except RegistryError as error:
        raise GraftError(str(error)) from error
    finally:
        actor.reset(token)
