"""``graft keys`` on a data folder: the first key, without a server."""

from __future__ import annotations

from pathlib import Path

from graft_server.registry import Registry
from support.processes import run_graft


def test_the_first_key_is_made_on_the_data_folder(tmp_path: Path) -> None:
    # Before any server ran there: a server that is to be reached by others asks for a key at its first start.
    folder = tmp_path / "graft-data"
    command = ["keys", "create", "--data-dir", folder, "--name", "me", "--scope"]
    assert "admin" in run_graft(*command, "query", code=1).error
    made = run_graft(*command, "admin", "--tokens-per-day", "1000")
    registry = Registry.open(folder)
    (key,) = registry.keys()
    (entry,) = registry.audit()
    registry.close()
    assert key.limits.tokens_per_day == 1000
    assert made.out.startswith(f"graft_{key.id}_")
    assert made.out.strip().split("_", 2)[2] not in repr(key)
    assert (entry.actor, entry.action, entry.target) == ("the command line", "apikey.create", key.id)


def test_a_server_without_keys_does_not_listen_wider(tmp_path: Path) -> None:
    refused = run_graft(
        "serve", "--base-model", "tiny", "--host", "0.0.0.0", "--port", "0", "--data-dir", tmp_path, code=1
    )
    assert f"graft keys create --data-dir {tmp_path}" in refused.error
