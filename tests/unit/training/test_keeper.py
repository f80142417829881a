"""The claims of jobs at work are kept, and what becomes of them is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from graft_server.registry import Registry
from graft_server.registry.errors import UnavailableError
from graft_server.registry.records import Claim
from graft_server.training.keeper import ClaimKeeper
from support.waiting import until

LEASE = 2.0


class Kept:
    """A keeper at work on one claimed job, and what it said."""

    def __init__(self, registry: Registry) -> None:
        job = registry.claim_job(lease=LEASE)
        assert job is not None
        assert job.claim is not None
        self.claim: Claim = job.claim
        self.lost: list[str] = []
        self.cancelled: list[str] = []
        self.keeper = ClaimKeeper(registry, LEASE, lost=self.lost.append, cancelled=self.cancelled.append)
        self.keeper.add(job.claim)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "first", f"sqlite:///{tmp_path / 'registry.db'}", (tmp_path / "all").as_uri())
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "rows.jsonl").write_text("{}")
    dataset = opened.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=rows)
    opened.create_job(task="translation", adapter="de", dataset=dataset.id, method="lora", options={})
    yield opened
    opened.close()


@pytest.fixture
def elsewhere(registry: Registry, tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "second", f"sqlite:///{tmp_path / 'registry.db'}", (tmp_path / "all").as_uri())
    yield opened
    opened.close()


@pytest.fixture
async def kept(registry: Registry) -> AsyncIterator[Kept]:
    kept = Kept(registry)
    running = asyncio.create_task(kept.keeper.run())
    yield kept
    running.cancel()


async def test_a_job_at_work_is_nobody_elses(kept: Kept, elsewhere: Registry) -> None:
    for _ in range(4):
        await asyncio.sleep(LEASE / 2)
        assert elsewhere.claim_job() is None
    assert (kept.lost, kept.cancelled) == ([], [])
    kept.keeper.drop(kept.claim)
    await until(elsewhere.claim_job)


async def test_a_cancel_is_heard_when_it_is_told(kept: Kept, elsewhere: Registry) -> None:
    elsewhere.request_cancel(kept.claim.job)
    kept.keeper.wake()
    await until(lambda: kept.cancelled)
    assert kept.cancelled[0] == kept.claim.job


async def test_an_outage_loses_no_claim_unless_somebody_took_the_job(
    kept: Kept, registry: Registry, elsewhere: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise UnavailableError("postgresql://host/graft")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "renew_claims", away)
        await asyncio.sleep(1.5 * LEASE)
    await asyncio.sleep(LEASE)
    assert elsewhere.claim_job() is None
    with monkeypatch.context() as patch:
        patch.setattr(registry, "renew_claims", away)
        await until(elsewhere.claim_job)
    await until(lambda: kept.lost)
    assert kept.lost[0] == kept.claim.job
