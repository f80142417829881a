"""What servers of one registry tell each other: the requests that they answer, and whose turn it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from graft_server.registry import ConflictError, Registry


@pytest.fixture
def pair(tmp_path, database_url):
    url = database_url or f"sqlite:///{tmp_path / 'registry.db'}"
    opened = [Registry.open(tmp_path / name, url, (tmp_path / "shared").as_uri()) for name in ("first", "second")]
    yield opened
    for registry in opened:
        registry.close()


def test_what_another_server_answers_with_is_not_deleted(pair, make_folder, lineage):
    first, second = pair
    for text in ("1", "2"):
        first.publish("de", make_folder(text), lineage)
    second.report_in_flight({"de@1"})
    assert (first.in_flight_elsewhere(), second.in_flight_elsewhere()) == ({"de@1"}, set())
    for delete in (lambda: first.delete_version("de", 1), lambda: first.delete_adapter("de")):
        with pytest.raises(ConflictError, match="de@1 are in flight on another server; try again"):
            delete()
    assert len(first.adapter("de").versions) == 2
    second.report_in_flight(set())
    first.delete_version("de", 1)
    assert [version.ref for version in second.adapter("de").versions] == ["de@2"]


def test_what_a_server_told_is_forgotten_when_it_is_gone(pair, make_folder, lineage, monkeypatch):
    first, second = pair
    first.publish("de", make_folder(), lineage)
    second.report_in_flight({"de@1"})
    monkeypatch.setattr("graft_server.registry.servers.BELIEVED", timedelta(0))
    assert first.in_flight_elsewhere() == set()
    first.delete_version("de", 1)


def test_one_server_has_its_turn_in_a_while(pair):
    with ThreadPoolExecutor(4) as pool:
        turns = list(pool.map(lambda n: pair[n % 2].take_turn("tidy", timedelta(hours=1)), range(8)))
    assert turns.count(True) == 1
    assert pair[0].take_turn("other", timedelta(hours=1))
    assert pair[1].take_turn("tidy", timedelta(0))


def test_what_servers_tell_each_other_is_no_change(pair):
    first, second = pair
    before = first.newest_change()
    second.report_in_flight({"de@1"})
    second.take_turn("tidy", timedelta(hours=1))
    assert first.newest_change() == before


def test_servers_know_of_each_other_until_they_leave(pair, monkeypatch):
    first, second = pair
    assert first.other_servers() == set()
    second.report_in_flight(set())
    first.report_in_flight({"de@1"})
    assert (first.other_servers(), second.other_servers()) == ({second.server}, {first.server})
    second.leave()
    assert (first.other_servers(), second.other_servers()) == (set(), {first.server})
    # One that was killed does not say so.
    monkeypatch.setattr("graft_server.registry.servers.BELIEVED", timedelta(0))
    assert second.other_servers() == set()
