"""What an engine keeps of adapters that are loaded, unloaded, pinned and given up in any order: nothing in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graft_server.base_model import BaseModel, resolve
from graft_server.engine.base import AdapterSource, GenerateRequest, PromptInput, SamplingParams
from support.adapters import methods
from support.device import TEST_DEVICE
from support.lora_folders import write_lora
from support.recorder import Recorder, drain
from support.tiny_model import save_tiny_model

pytestmark = pytest.mark.torch

ADAPTERS = 4
#: Its files are not there.
BROKEN = 9


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("lifecycle")
    return resolve(str(save_tiny_model(folder / "model")), folder / "cache")


class Rig:
    """Engines over one model, with adapters 1 to ``ADAPTERS`` and one that is broken."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        self._base = base
        self.sources = {
            i: AdapterSource(f"a{i}@1", i, str(write_lora(folder / f"a{i}", seed=i)), "lora", 4)
            for i in range(1, ADAPTERS + 1)
        }
        self.sources[BROKEN] = AdapterSource("broken@1", BROKEN, str(folder / "nowhere"), "lora", 4)

    def engine(self, events: Recorder, **settings_: Any) -> Any:
        from graft_server.engine.messages import EngineConfig
        from graft_server.engine.torch.engine import TorchEngine

        chosen = {"device": TEST_DEVICE, "dtype": "float32", "kv_cache_mib": 1, "max_slots": 2, **settings_}
        config = EngineConfig(engine="torch", base_model=str(self._base.path), cache_dir="", **chosen)
        return TorchEngine(self._base, config, methods(), events)

    def request(self, name: str, adapter: int) -> GenerateRequest:
        sampling = SamplingParams(max_tokens=4, ignore_eos=True)
        return GenerateRequest(name, PromptInput(text="Hi"), sampling, self.sources[adapter])


@pytest.fixture(scope="module")
def rig(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(base, tmp_path_factory.mktemp("adapters"))


def loaded(engine: Any) -> list[str]:
    return sorted(engine.stats().loaded)


def at_rest(engine: Any) -> None:
    drain(engine)
    engine.check_integrity()


def test_an_adapter_whose_last_waiting_request_is_aborted_does_not_come(rig: Rig) -> None:
    engine = rig.engine(Recorder())
    for name in ("one", "two"):
        engine.submit(rig.request(name, 1))
    engine.abort("one")
    assert engine.busy_loading
    engine.abort("two")
    assert not engine.busy_loading
    at_rest(engine)
    assert loaded(engine) == []


def test_a_load_that_is_still_awaited_survives_the_requests(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.load("load", rig.sources[1])
    engine.submit(rig.request("one", 1))
    engine.abort("one")
    at_rest(engine)
    assert loaded(engine) == ["a1@1"]
    assert events.finished == {"load"}


def test_unloading_what_only_a_request_waits_for_and_then_aborting_it(rig: Rig) -> None:
    engine = rig.engine(Recorder())
    engine.submit(rig.request("one", 1))
    engine.unload(1)
    engine.abort("one")
    at_rest(engine)
    assert loaded(engine) == []


@pytest.mark.parametrize("call", ["load", "pin"])
def test_unloading_while_a_load_waits_answers_it(rig: Rig, call: str) -> None:
    events = Recorder()
    engine = rig.engine(events)
    getattr(engine, call)("waits", rig.sources[1])
    engine.unload(1)
    at_rest(engine)
    assert events.finished == {"waits"}
    assert loaded(engine) == []


def test_loading_takes_an_unload_back(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.load("first", rig.sources[1])
    at_rest(engine)
    engine.submit(rig.request("one", 1))
    engine.unload(1)
    engine.load("again", rig.sources[1])
    at_rest(engine)
    assert events.finished == {"first", "again", "one"}
    assert loaded(engine) == ["a1@1"]


def test_an_adapter_that_is_unloaded_during_an_answer_leaves_behind_it(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.load("load", rig.sources[1])
    at_rest(engine)
    engine.submit(rig.request("one", 1))
    engine.step()
    engine.unload(1)
    assert loaded(engine) == ["a1@1"]
    at_rest(engine)
    assert "one" in events.finished
    assert loaded(engine) == []


def test_a_broken_adapter_that_is_unloaded_meanwhile_leaves_nothing(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.submit(rig.request("one", BROKEN))
    engine.pin("pin", rig.sources[BROKEN])
    engine.unload(BROKEN)
    at_rest(engine)
    assert {name: error.code for name, error in events.errors.items()} == {
        "one": "adapter-unloadable",
        "pin": "adapter-unloadable",
    }


CALLS = ["submit", "abort", "load", "prefetch", "pin", "unpin", "unload", "step", "poll"]


def _call(rig: Rig, engine: Any, call: str, name: str, adapter: int, other: str) -> None:
    """One call; ``other`` is the request that an abort is meant for."""
    match call:
        case "submit":
            engine.submit(rig.request(name, adapter))
        case "abort":
            engine.abort(other)
        case "load" | "pin":
            getattr(engine, call)(name, rig.sources[adapter])
        case "prefetch":
            engine.prefetch(rig.sources[adapter])
        case "unpin" | "unload":
            getattr(engine, call)(adapter)
        case "step":
            engine.step()
        case "poll":
            engine.poll_adapters()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(CALLS), st.sampled_from([*range(1, ADAPTERS + 1), BROKEN]), st.integers(0, 30)),
        max_size=40,
    ),
    slots=st.integers(1, 3),
)
def test_any_calls_in_any_order_leave_nothing_and_answer_each_once(
    rig: Rig, calls: list[tuple[str, int, int]], slots: int
) -> None:
    events = Recorder()
    engine = rig.engine(events, max_slots=slots)
    asked: set[str] = set()
    aborted: set[str] = set()
    for number, (call, adapter, other) in enumerate(calls):
        name, victim = f"{call} {number}", f"submit {other}"
        _call(rig, engine, call, name, adapter, victim)
        if call in ("submit", "load", "pin"):
            asked.add(name)
        elif call == "abort":
            aborted.add(victim)
    at_rest(engine)
    answered = [*events.finished, *events.errors]
    assert len(answered) == len(set(answered))
    assert asked - aborted <= set(answered) <= asked
    assert len(loaded(engine)) <= slots
    assert "broken@1" not in loaded(engine)
    for adapter in rig.sources:
        engine.unload(adapter)
    at_rest(engine)
    assert loaded(engine) == []
