"""Partial results of a batch: wherever a kill cuts them, no answer is lost that was whole, and none comes twice."""

from __future__ import annotations

import json
import resource
import signal
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graft_server.serving.batch_results import PartialResults


def result(custom_id: str, status: int) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    body = {"usage": usage} if status == 200 else {"error": {"message": "no"}}
    return {"id": "r", "custom_id": custom_id, "response": {"status_code": status, "body": body}, "error": None}


@given(
    results=st.lists(st.tuples(st.text(), st.sampled_from([200, 404])), unique_by=lambda pair: pair[0], max_size=12),
    cut=st.integers(0, 2000),
)
def test_a_cut_costs_the_line_that_it_hits_alone(results: list[tuple[str, int]], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        with PartialResults(Path(folder)) as first:
            for custom_id, status in results:
                first.add(result(custom_id, status))
        content = first.output.read_bytes()
        first.output.write_bytes(content[:cut])
        whole = {json.loads(line)["custom_id"] for line in content[:cut].split(b"\n")[:-1]}
        with PartialResults(Path(folder)) as again:
            assert again.done == whole | {custom_id for custom_id, status in results if status == 404}
            for custom_id, status in results:
                if custom_id not in again.done:
                    again.add(result(custom_id, status))
        lines = [json.loads(line)["custom_id"] for line in again.output.read_bytes().splitlines()]
        assert sorted(lines) == sorted(custom_id for custom_id, status in results if status == 200)
        assert again.counts == first.counts
        assert again.counts["output_tokens"] == 2 * len(lines)


def test_a_line_that_the_disk_has_no_room_for_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with PartialResults(tmp_path) as results:
        results.add(result("first", 200))
        whole = results.output.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
        try:
            with pytest.raises(OSError, match="No space left"):
                results.add(result("second", 200))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert results.output.read_bytes() == whole
        assert (results.done, results.counts["completed"]) == ({"first"}, 1)
        results.add(result("second", 200))
    with PartialResults(tmp_path) as again:
        assert again.done == {"first", "second"}
