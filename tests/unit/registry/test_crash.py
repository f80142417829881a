"""``kill -9`` at random moments: whatever was acknowledged is there, and nothing else is left behind."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

from graft_client.schemas.jobs import JobState
from graft_server.registry import Registry

_PUBLISH_FOREVER = """
import os, sys
from pathlib import Path
from graft_server.registry import Lineage, Registry

registry = Registry.open(Path(sys.argv[1]))
source = Path(sys.argv[2])
lineage = Lineage(task="translation", method="lora", base_model="b", base_fingerprint="f")
rows = registry.add_dataset(task="translation", format="jsonl", rows=1, bad_rows=0, folder=source)
registry.recover_jobs()
while True:
    for name in ("weights.safetensors", "more.safetensors"):
        (source / name).write_bytes(os.urandom(200_000))
    registry.create_job(task="translation", adapter="x", dataset=rows.id, method="lora", options={})
    job = registry.claim_job()
    version = registry.publish("x", source, lineage, job_id=job.id)
    print("published", version.version, version.engine_id, version.digest, job.id, flush=True)
    if version.version > 3:
        registry.delete_version("x", version.version - 3)
"""


def check_invariants(data_dir: Path, known: dict[int, tuple[int, str]], acknowledged: list[tuple[int, str]]) -> None:
    registry = Registry.open(data_dir)
    assert registry.collect_garbage(dry_run=True) == []
    versions = [version for adapter in registry.adapters() for version in adapter.versions]
    for version in versions:
        registry.verify(version)
        identity = (version.engine_id, version.digest)
        assert known.setdefault(version.version, identity) == identity
    assert len({engine_id for engine_id, _ in known.values()}) == len(known)
    on_disk = {folder.name for folder in (data_dir / "artefacts").glob("*/*")}
    assert on_disk == {version.digest for version in versions}
    assert list((data_dir / "staging").iterdir()) == []
    for number, job in acknowledged:
        assert registry.job(job).version == f"x@{number}"
    for job in registry.jobs(state=JobState.succeeded, limit=10_000):
        assert job.version is not None
    registry.close()


def test_a_killed_process_leaves_nothing_half_published(tmp_path):
    chance = random.Random(20)
    data_dir, source = tmp_path / "data", tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text("{}")
    known: dict[int, tuple[int, str]] = {}
    acknowledged: list[tuple[int, str]] = []
    for _ in range(8):
        command = [sys.executable, "-c", _PUBLISH_FOREVER, str(data_dir), str(source)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for _ in range(chance.randint(1, 4)):
                child.stdout.readline()
            # Not to wait for anything: it only moves the kill to another place in the loop.
            time.sleep(chance.random() * 0.04)
            child.kill()
            rest = child.stdout.read()
        for line in rest.splitlines():
            _, number, engine_id, digest, job = line.split()
            assert known.setdefault(int(number), (int(engine_id), digest)) == (int(engine_id), digest)
            acknowledged.append((int(number), job))
        check_invariants(data_dir, known, acknowledged)
    assert len(known) >= 8
