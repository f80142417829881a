"""A little server for each test, and no settings of the person who runs the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click.testing
import pytest

from graft_client.cli import root
from unit.client.little_server import LittleServer, running


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRAFT_URL", "GRAFT_API_KEY", "GRAFT_OTHER_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[LittleServer]:
    with running(LittleServer()) as little:
        yield little


Graft = Callable[..., click.testing.Result]


@pytest.fixture
def graft(server: LittleServer) -> Graft:
    """Runs ``graft`` in this process against the little server."""

    def run(*args: str, **kwargs: Any) -> click.testing.Result:
        env = {"GRAFT_URL": server.url, **kwargs.pop("env", {})}
        return click.testing.CliRunner().invoke(root, list(args), prog_name="graft", env=env, **kwargs)

    return run
