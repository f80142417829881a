"""Who a server is among those of one registry: a name that its data folder keeps."""

from __future__ import annotations

import secrets
from pathlib import Path

from graft_server.registry.errors import storage_errors
from graft_server.whole_files import write_whole

FILE = "server.id"


def server_id(root: Path) -> str:
    """The name kept in a data folder, made where there is none. Needs the store's lock.

    Raises:
        StorageFullError: no space is left.
    """
    file = root / FILE
    # One that a crash left empty is none.
    if file.is_file() and (known := file.read_text().strip()):
        return known
    made = secrets.token_hex(8)
    with storage_errors(root):
        write_whole(file, f"{made}\n")
    return made
