"""What vLLM can't serve is refused with its name and the way out."""

from __future__ import annotations

from typing import Any

import pytest

from graft_server.engine.vllm.refusals import largest_rank, refusal, started_rank

PLAIN = {"peft_type": "LORA", "r": 8, "bias": "none", "use_dora": False, "modules_to_save": None}


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"lora_bias": True}, "bias of LoRA's own"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"layer_replication": [[0, 4]]}, "layer_replication"),
    ],
)
def test_it_says_what_and_what_to_do(changed: dict[str, Any], named: str) -> None:
    reason = refusal({**PLAIN, **changed})
    assert reason is not None
    assert named in reason
    assert 'engine = "torch"' in reason


@pytest.mark.parametrize("init", [True, False, "gaussian", "eva"])
def test_plain_lora_is_served(init: Any) -> None:
    assert refusal({**PLAIN, "init_lora_weights": init}) is None


def test_ranks_of_patterns_count() -> None:
    assert largest_rank({"r": 8, "rank_pattern": {"q_proj": 96}}) == 96


def test_vllm_starts_with_the_next_rank_it_knows() -> None:
    assert [started_rank(rank) for rank in (1, 9, 64, 65, 512, 513)] == [1, 16, 64, 128, 512, None]
