"""A mixed batch gives, token for token, what each adapter gives alone: every method, base rows, every batch shape."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft_server.engine.base import (
    AdapterSource,
    ChatMessage,
    ConstraintSpec,
    GenerateRequest,
    PromptInput,
    SamplingParams,
    ScoreRequest,
)
from graft_server.engine.torch.block_pool import BlockPool
from support.adapters import greedy, methods, random_adapter
from support.recorder import Recorder, drain
from support.tiny_model import save_tiny_model

pytestmark = pytest.mark.torch

PROMPTS = ["Hello", "What is a beam?", "Turn off the lights in the kitchen, please.", "x" * 90, "ab"]
NEW_TOKENS = 12


class Rig:
    """A tiny model, one adapter of each method, and the expected answer of each to each prompt."""

    def __init__(self, folder: Path) -> None:
        import torch

        from graft_server.base_model import resolve
        from graft_server.base_model.loading import load_model, load_tokenizer

        torch.set_num_threads(2)
        save_tiny_model(folder / "model")
        self.base = resolve(str(folder / "model"), folder / "cache")
        self.tokenizer = load_tokenizer(self.base)
        kinds: list[tuple[str, dict[str, Any]]] = [
            ("lora", {"r": 4}),
            ("lora", {"r": 16, "target_modules": "q_proj,v_proj"}),
            ("rslora", {"r": 8}),
            ("dora", {"r": 4}),
            ("bottleneck", {"r": 8}),
            ("output-head", {"r": 16}),
        ]
        self.adapters: list[AdapterSource | None] = [None]
        models: list[Any] = [load_model(self.base, dtype="float32", device="cpu")]
        for i, (method, options) in enumerate(kinds, start=1):
            source, model = random_adapter(self.base, method, folder / f"a{i}", seed=i, engine_id=i, **options)
            self.adapters.append(source)
            models.append(model)
        self.models = models
        self._expected: dict[tuple[int, int], str] = {}

    def tokens(self, prompt: str) -> list[int]:
        return list(self.tokenizer(prompt)["input_ids"])

    def expected(self, adapter: int, prompt: int) -> str:
        if (adapter, prompt) not in self._expected:
            ids = greedy(self.models[adapter], self.tokens(PROMPTS[prompt]), NEW_TOKENS)
            self._expected[adapter, prompt] = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        return self._expected[adapter, prompt]

    def engine(self, events: Recorder, **overrides: Any) -> Any:
        from graft_server.engine.messages import EngineConfig
        from graft_server.engine.torch.engine import TorchEngine

        settings_: dict[str, Any] = {
            "engine": "torch",
            "base_model": str(self.base.path),
            "cache_dir": "",
            "device": "cpu",
            "dtype": "float32",
            "kv_cache_mib": 16,
            **overrides,
        }
        return TorchEngine(self.base, EngineConfig(**settings_), methods(), events)


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    return Rig(tmp_path_factory.mktemp("rig"))


def request(rig: Rig, name: str, adapter: int, prompt: int) -> GenerateRequest:
    return GenerateRequest(
        name,
        PromptInput(text=PROMPTS[prompt]),
        SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True),
        rig.adapters[adapter],
    )


def test_adapters_change_the_answers(rig: Rig) -> None:
    answers = {rig.expected(adapter, 1) for adapter in range(len(rig.adapters))}
    assert len(answers) == len(rig.adapters)


def test_every_adapter_alone_and_all_together_equal_the_reference(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    cases = [(a, p) for a in range(len(rig.adapters)) for p in range(len(PROMPTS))]
    for a, p in cases[::7]:
        engine.submit(request(rig, f"alone-{a}-{p}", a, p))
        drain(engine)
    for a, p in cases:
        engine.submit(request(rig, f"mixed-{a}-{p}", a, p))
    drain(engine)
    assert not events.errors
    for a, p in cases[::7]:
        assert events.text(f"alone-{a}-{p}") == rig.expected(a, p)
    for a, p in cases:
        assert events.text(f"mixed-{a}-{p}") == rig.expected(a, p), f"adapter {a}, prompt {p}"
    assert engine.runner.pool.used == 0


@settings(max_examples=15, deadline=None)
@given(
    arrivals=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=14),
    budget=st.sampled_from([7, 33, 2048]),
    blocks=st.sampled_from([1, 16]),
    slots=st.sampled_from([2, 8]),
    seed=st.integers(0, 1000),
)
def test_any_mixture_in_any_order_with_chunks_preemption_and_eviction(
    rig: Rig, arrivals: list[tuple[int, int, int]], budget: int, blocks: int, slots: int, seed: int
) -> None:
    events = Recorder()
    engine = rig.engine(events, max_batch_tokens=budget, max_slots=slots)
    if blocks == 1:
        # So small a cache that the longest prompt just fits: sequences push each other out.
        engine.runner.pool = engine.scheduler.pool = BlockPool(9, 16)
    cancelled = set()
    chance = random.Random(seed)
    pending = sorted(enumerate(arrivals), key=lambda item: item[1][2])
    step = 0
    while pending:
        while pending and pending[0][1][2] <= step:
            i, (a, p, _) = pending.pop(0)
            engine.submit(request(rig, str(i), a, p))
            if chance.random() < 0.15:
                cancelled.add(str(i))
        engine.poll_adapters()
        engine.step()
        for name in cancelled:
            engine.abort(name)
        step += 1
    drain(engine)
    assert not events.errors
    for i, (a, p, _) in enumerate(arrivals):
        if str(i) not in cancelled:
            assert events.text(str(i)) == rig.expected(a, p)
    assert engine.runner.pool.used == 0
    assert not any(engine.slots.in_use(i) for i in engine.slots.ids())


@pytest.mark.parametrize("ending", [None, "\n"])
@pytest.mark.parametrize("adapter", range(7))
def test_scores_equal_the_reference(rig: Rig, adapter: int, ending: str | None) -> None:
    import torch

    from graft_server.base_model.prompt import encode_target

    events = Recorder()
    engine = rig.engine(events, max_batch_tokens=100)
    candidates = ("a", "Toy Story (1995)", "Jumanji (1995)", "Toy", "z" * 300, *(f"film {i}" for i in range(40)))
    # Beside a running generation, so that the batch is mixed.
    engine.submit(request(rig, "beside", 0, 2))
    prompted = PromptInput(text=PROMPTS[2])
    engine.submit(ScoreRequest("score", prompted, candidates, adapter=rig.adapters[adapter], ending=ending))
    drain(engine)
    prompt = rig.tokens(PROMPTS[2])
    for candidate, scored in list(zip(candidates, events.scores["score"].scores, strict=True))[:8]:
        ids = encode_target(rig.tokenizer, candidate, ending=ending)
        with torch.inference_mode():
            logits = rig.models[adapter](input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits.float(), -1)[len(prompt) - 1 : -1]
        expected = logprobs.gather(-1, torch.tensor(ids)[:, None]).sum()
        assert scored.tokens == len(ids)
        assert scored.logprob == pytest.approx(float(expected), rel=1e-4, abs=1e-3)
    assert events.text("beside") == rig.expected(0, 2)
    assert engine.runner.pool.used == 0


def test_chat_messages_go_through_the_template(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.submit(
        GenerateRequest(
            "chat",
            PromptInput(messages=(ChatMessage("user", "Hello"),)),
            SamplingParams(max_tokens=6, ignore_eos=True),
        )
    )
    drain(engine)
    rendered = rig.tokens("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    expected = rig.tokenizer.decode(greedy(rig.models[0], rendered, 6), skip_special_tokens=True)
    assert events.text("chat") == expected
    assert events.deltas["chat"][-1].prompt_tokens == len(rendered)


def test_a_seed_makes_sampling_reproducible_whatever_else_is_in_the_batch(rig: Rig) -> None:
    texts = []
    for others in (0, 5):
        events = Recorder()
        engine = rig.engine(events)
        for i in range(others):
            engine.submit(request(rig, f"other{i}", i, i))
        sampling = SamplingParams(max_tokens=16, temperature=1.0, top_p=0.9, top_k=50, seed=7, ignore_eos=True)
        engine.submit(GenerateRequest("seeded", PromptInput(text="Once"), sampling, rig.adapters[1]))
        drain(engine)
        texts.append(events.text("seeded"))
    assert texts[0] == texts[1]
    assert texts[0] != rig.expected(1, 0)


@pytest.mark.parametrize(
    ("constraint", "accepts"),
    [
        (ConstraintSpec("choices", choices=("alpha", "beta")), lambda text: text in ("alpha", "beta")),
        (ConstraintSpec("regex", pattern="[0-9]{3}-[a-f]{2}"), lambda text: len(text) == 6 and text[3] == "-"),
        (
            ConstraintSpec(
                "json_schema",
                json_schema='{"type":"object","properties":{"on":{"type":"boolean"}},"required":["on"],'
                '"additionalProperties":false}',
            ),
            lambda text: json.loads(text) in ({"on": True}, {"on": False}),
        ),
    ],
)
def test_constraints_hold_for_one_row_and_leave_the_others_alone(
    rig: Rig, constraint: ConstraintSpec, accepts: Any
) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.submit(request(rig, "free", 2, 1))
    engine.submit(
        GenerateRequest("bound", PromptInput(text="Say"), SamplingParams(max_tokens=60), rig.adapters[1], constraint)
    )
    drain(engine)
    assert accepts(events.text("bound")), events.text("bound")
    assert events.deltas["bound"][-1].finish_reason == "stop"
    assert events.text("free") == rig.expected(2, 1)


def test_a_bad_pattern_is_refused(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.submit(
        GenerateRequest("bad", PromptInput(text="Say"), constraint=ConstraintSpec("regex", pattern="(unclosed"))
    )
    assert "can't be compiled" in str(events.errors["bad"])


def test_stop_strings_end_the_answer_and_are_not_returned(rig: Rig) -> None:
    whole = rig.expected(1, 2)
    stop = whole[4:6]
    events = Recorder()
    engine = rig.engine(events)
    sampling = SamplingParams(max_tokens=NEW_TOKENS, stop=(stop,), ignore_eos=True)
    engine.submit(GenerateRequest("s", PromptInput(text=PROMPTS[2]), sampling, rig.adapters[1]))
    drain(engine)
    assert events.text("s") == whole[: whole.index(stop)]
    assert events.deltas["s"][-1].finish_reason == "stop"


def test_logprobs_are_the_models(rig: Rig) -> None:
    import torch

    events = Recorder()
    engine = rig.engine(events)
    sampling = SamplingParams(max_tokens=4, logprobs=3, ignore_eos=True)
    engine.submit(GenerateRequest("l", PromptInput(text=PROMPTS[1]), sampling, rig.adapters[3]))
    drain(engine)
    tokens = [token for delta in events.deltas["l"] for token in delta.tokens]
    assert len(tokens) == 4
    with torch.inference_mode():
        logits = rig.models[3](input_ids=torch.tensor([rig.tokens(PROMPTS[1])]), use_cache=False).logits[0, -1]
    expected = torch.log_softmax(logits, -1).topk(3).values.tolist()
    assert [logprob for _, logprob in tokens[0].top] == pytest.approx(expected, abs=1e-4)
    assert tokens[0].logprob == pytest.approx(expected[0], abs=1e-4)


def test_a_prompt_beyond_the_context_is_refused_with_the_numbers(rig: Rig) -> None:
    events = Recorder()
    engine = rig.engine(events)
    engine.submit(GenerateRequest("long", PromptInput(text="y" * 600)))
    assert events.errors["long"].code == "prompt-too-long"
    assert "600 tokens" in str(events.errors["long"])
    assert "512" in str(events.errors["long"])


def test_an_unreadable_adapter_fails_its_requests_only(rig: Rig, tmp_path: Path) -> None:
    events = Recorder()
    engine = rig.engine(events)
    missing = AdapterSource("gone@1", 99, str(tmp_path), "lora", 4)
    engine.submit(GenerateRequest("gone", PromptInput(text="x"), adapter=missing))
    engine.submit(request(rig, "fine", 1, 1))
    drain(engine)
    assert events.errors["gone"].code == "adapter-unloadable"
    assert "adapter_config.json" in str(events.errors["gone"])
    assert events.text("fine") == rig.expected(1, 1)
