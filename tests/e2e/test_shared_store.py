"""Two server processes with one registry in PostgreSQL and one object store: registered at one, served by the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.lora_folders import write_lora
from support.object_stores import s3_server
from support.postgresql import postgresql
from support.processes import running

pytestmark = pytest.mark.torch


def test_what_is_registered_at_one_server_is_served_by_the_other(tiny_model: Path, tmp_path: Path) -> None:
    with postgresql() as postgres, s3_server() as store:
        shared = {"database_url": postgres.new_database(), "artefacts_url": store.new_url()}
        options = ("--dtype", "float32")
        with (
            running(tiny_model, tmp_path / "a", *options, threads=1, **shared) as first,
            running(tiny_model, tmp_path / "b", *options, threads=1, **shared) as second,
        ):
            folder = write_lora(tmp_path / "adapter", seed=1)
            first.graft("adapters", "register", folder, "--name", "de", "--task", "translation")
            asked = ("query", "de", "red", "--max-tokens", "4")
            answers = [server.json(*asked)["text"] for server in (first, second)]
            assert answers[0] == answers[1]
            assert (
                second.json("query", "base", "red", "--task", "translation", "--max-tokens", "4")["text"] != answers[0]
            )
            assert len(list((tmp_path / "b" / "cache" / "artefacts").glob("*/*"))) == 1

            store.stop()
            assert second.json(*asked)["text"] == answers[0]
            other = write_lora(tmp_path / "other", seed=2)
            refused = second.graft("adapters", "register", other, "--name", "de", "--task", "translation", code=6)
            assert "the artefact store does not answer" in refused.error
