"""``graft adapters push`` and ``pull``: two servers, each of which gets the key that is for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unit.client import samples
from unit.client.conftest import Graft
from unit.client.little_server import Answer, LittleServer, document, problem, running

PUSH, PULL = ("push", "--to"), ("pull", "--from")


@pytest.fixture
def other() -> Iterator[LittleServer]:
    with running(LittleServer()) as little:
        yield little


def serve(server: LittleServer, refusal: Answer | None = None) -> None:
    """Has the version, and takes one; or refuses both."""
    server.on("GET", "/api/adapters/de-strings/versions/3", refusal or document(samples.version()))
    server.on("GET", "/api/adapters/de-strings@3/bundle", Answer(200, [b"zip"]))
    server.on("POST", "/api/bundles", refusal or document(samples.version(1), 201))


@pytest.fixture(autouse=True)
def _both_serve(server: LittleServer, other: LittleServer) -> None:
    serve(server)
    serve(other)


def keys_of(server: LittleServer) -> set[str | None]:
    assert server.asked
    return {asked.headers["authorization"] for asked in server.asked}


@pytest.mark.parametrize(("verb", "option"), [PUSH, PULL])
def test_this_servers_key_is_not_told_to_the_other(
    server: LittleServer, other: LittleServer, graft: Graft, verb: str, option: str
) -> None:
    result = graft("adapters", verb, "de-strings@3", option, other.url, env={"GRAFT_API_KEY": "mine"})
    assert result.exit_code == 0, result.output
    assert (keys_of(server), keys_of(other)) == ({"Bearer mine"}, {None})
    result = graft("adapters", verb, "de-strings@3", option, other.url, "--api-key", "mine")
    assert result.exit_code == 0, result.output
    assert keys_of(other) == {None}


@pytest.mark.parametrize(("verb", "option"), [PUSH, PULL])
@pytest.mark.parametrize("by_variable", [False, True])
def test_the_other_server_gets_a_key_of_its_own(
    server: LittleServer, other: LittleServer, graft: Graft, verb: str, option: str, by_variable: bool
) -> None:
    env = {"GRAFT_API_KEY": "mine"} | ({"GRAFT_OTHER_API_KEY": "theirs"} if by_variable else {})
    given = [] if by_variable else [f"{option}-key", "theirs"]
    result = graft("adapters", verb, "de-strings@3", option, other.url, *given, env=env)
    assert result.exit_code == 0, result.output
    assert (keys_of(server), keys_of(other)) == ({"Bearer mine"}, {"Bearer theirs"})


@pytest.mark.parametrize(("verb", "option"), [PUSH, PULL])
def test_the_server_that_wants_a_key_is_told_apart(
    server: LittleServer, other: LittleServer, graft: Graft, verb: str, option: str
) -> None:
    def told() -> str:
        result = graft("adapters", verb, "de-strings@3", option, other.url)
        assert result.exit_code == 8
        return result.stderr

    serve(other, refusal := problem(401, "a key is needed"))
    assert told() == f"Error: a key is needed; set GRAFT_OTHER_API_KEY, or give {option}-key\n"
    serve(other)
    serve(server, refusal)
    assert told() == "Error: a key is needed; set GRAFT_API_KEY, or give --api-key\n"
