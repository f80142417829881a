"""Patterns of ranks and scalings: what PEFT's users write means what it means there, and none can hold anybody up."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from graft_plugins.manager import PluginHost
from graft_plugins.method import AdapterFault
from graft_server.api.adapter_folder import read_adapter_folder
from graft_server.composition.merge import merge
from graft_server.problems import ProblemError
from graft_server.training.methods.patterns import ModulePatterns, check_patterns
from support.lora_folders import write_lora

pytestmark = pytest.mark.torch

ORDINARY = [
    "q_proj",
    "layers.1.self_attn.q_proj",
    "model.layers.0.mlp.up_proj",
    r"model\.layers\.1\.mlp\.down_proj",
    r".*layers\.\d+\.mlp.*",
    "[qk]_proj",
    "(q|v)_proj",
    r"layers\.(0|1|10|11|12)\.(self_attn|mlp)\.(o_proj|gate_proj)",
    r"(?:layers\.)?1\.self_attn\..+",
    r"model\.(language_model\.)?layers\.[0-9]+\.mlp\.(up|down)_proj",
    "^model.layers.0.*k_proj$",
    r"[^.]+\.o_proj",
    "lm_head",
    "proj",
]
HOSTILE = [
    "(([a-z_.0-9]+)+)+!",
    "(.*)*!",
    "([a-z]+){2,}!",
    "(.|.)" * 40 + "!",
    ".?" * 100 + "!",
    ".{0,99}" * 30 + "!",
    ".*.*.*!",
    r"(.)\1*!",
    "(?=(.*)*!).",
]


def adapter(folder: Path, **config: Any) -> Path:
    return write_lora(folder / "adapter", **config)


def read(folder: Path, host: PluginHost) -> None:
    read_adapter_folder(folder, host.task("chat"), host.methods, "")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_pattern_that_matches_for_ever_is_refused_unmatched(
    field: str, pattern: str, host: PluginHost, tmp_path: Path
) -> None:
    folder = adapter(tmp_path, **{field: {pattern: 1}})
    started = time.monotonic()
    with pytest.raises(ProblemError, match=f"{field} has a key that could take too long.*name the modules") as caught:
        read(folder, host)
    assert caught.value.code == "invalid-adapter"
    with pytest.raises(AdapterFault, match="could take too long"):
        merge([folder, folder], [0.5, 0.5], tmp_path, method="cat", density=1, seed=0)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({"a" * 257: 1}, "a key of 257 characters.*use several shorter ones"),
        ({f"layers.{n}": 1 for n in range(4097)}, "has 4097 patterns, and at most 4096"),
        ({f".*{n}.*!": 1 for n in range(300)}, "rank_pattern could take too long"),
        ({"(q_proj": 1}, "no pattern, '\\(q_proj'"),
        ({"(?i)q_proj": 1}, "no pattern"),
        ({"a{99999999999}": 1}, "no pattern"),
        (["q_proj"], "must be an object, not list"),
    ],
)
def test_patterns_that_are_none_or_too_many(patterns: Any, message: str, host: PluginHost, tmp_path: Path) -> None:
    with pytest.raises(ProblemError, match=message):
        read(adapter(tmp_path, rank_pattern=patterns), host)


def test_ordinary_patterns_choose_what_peft_chooses(load_model: Callable[[], Any]) -> None:
    from peft.utils.other import get_pattern_key

    modules = [name for name, _ in load_model().named_modules() if name]
    check_patterns(dict.fromkeys(ORDINARY, 1))
    for pattern in ORDINARY:
        ours = {name: ModulePatterns([pattern]).key(name) for name in modules}
        # PEFT gives the name itself where nothing matches.
        theirs = {name: get_pattern_key([pattern], name) == pattern for name in modules}
        assert {name: key == pattern for name, key in ours.items()} == theirs
    several = ModulePatterns(ORDINARY)
    for name in modules:
        assert (several.key(name) or name) == get_pattern_key(ORDINARY, name)


def test_the_costliest_patterns_that_are_taken_are_matched_soon() -> None:
    costly = dict.fromkeys([f".*.*{n}!" for n in range(30)] + [f"{'(.|.)' * 14}{n}!" for n in range(8)], 1)
    check_patterns(costly)
    patterns = ModulePatterns(costly)
    started = time.monotonic()
    assert patterns.key("model.language_model.layers.61.mlp.experts.127.down_proj") is None
    assert time.monotonic() - started < 2


def test_thousands_of_plain_names_are_taken() -> None:
    names = {f"layers.{layer}.mlp.experts.{expert}.up_proj": 8 for layer in range(32) for expert in range(128)}
    check_patterns(names)
    assert ModulePatterns(names).key("model.layers.31.mlp.experts.127.up_proj") == "layers.31.mlp.experts.127.up_proj"
