"""A mixed batch gives, token for token, what each adapter gives alone: every method, base rows, every batch shape."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
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
from support.adapters import greedy, methods
from support.device import TEST_DEVICE
from support.no_compiler import no_compiler
from support.plain_models import KINDS, PlainModels
from support.recorder import Recorder, drain

pytestmark = pytest.mark.torch

#: A token of the tiny model is a byte: several blocks of the KV cache.
SHARED = "The rules of the house are long, and everybody reads them. "
PROMPTS = [
    "Hello",
    "What is a beam?",
    "Turn off the lights in the kitchen, please.",
    "x" * 90,
    "ab",
    f"{SHARED}Be quiet.",
    f"{SHARED}Be in time, and then be quiet.",
    SHARED[:40],
]
NEW_TOKENS = 12
CANDIDATES = ("a", "Toy Story (1995)", "Toy")


class Rig(PlainModels):
    """A tiny model, adapters of each method in several rank buckets, and the expected answer of each to each prompt."""

    def __init__(self, folder: Path) -> None:
        import torch

        torch.set_num_threads(2)
        more = [("dora", {"r": 24, "target_modules": "q_proj,down_proj"}), ("bottleneck", {"r": 20})]
        super().__init__(folder, [*KINDS, *more])
        self._expected: dict[tuple[int, int], str] = {}
        self._scores: dict[tuple[int, int], list[float]] = {}

    def expected(self, adapter: int, prompt: int) -> str:
        if (adapter, prompt) not in self._expected:
            self._expected[adapter, prompt] = self.answer(adapter, PROMPTS[prompt], NEW_TOKENS)
        return self._expected[adapter, prompt]

    def scores(self, adapter: int, prompt: int) -> list[float]:
        """Log-probabilities of ``CANDIDATES`` behind a prompt."""
        if (adapter, prompt) not in self._scores:
            self._scores[adapter, prompt] = [self.score(adapter, PROMPTS[prompt], one) for one in CANDIDATES]
        return self._scores[adapter, prompt]

    def engine(self, events: Recorder, **overrides: Any) -> Any:
        from graft_server.engine.messages import EngineConfig
        from graft_server.engine.torch.engine import TorchEngine

        settings_: dict[str, Any] = {
            "engine": "torch",
            "base_model": str(self.base.path),
            "cache_dir": "",
            "device": TEST_DEVICE,
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


@pytest.mark.parametrize("blocks", [None, 9], ids=["room", "full"])
def test_echoed_prompts_are_as_likely_as_for_the_plain_model(rig: Rig, blocks: int | None) -> None:
    """Of each adapter, in pieces, beside answers without echo, and computed again after preemption."""
    events = Recorder()
    engine = rig.engine(events, max_batch_tokens=24)
    if blocks is not None:
        engine.scheduler.pool = engine.runner.pool = BlockPool(blocks, 16)
    cases = [(a, p) for a in range(len(rig.adapters)) for p in (1, 5, 6)]
    for a, p in cases:
        params = SamplingParams(max_tokens=(a + p) % 3, ignore_eos=True, logprobs=3)
        prompt = PromptInput(text=PROMPTS[p])
        engine.submit(GenerateRequest(f"{a}-{p}", prompt, params, rig.adapters[a], echo=True))
        engine.submit(request(rig, f"plain-{a}-{p}", a, p))
    drain(engine)
    assert not events.errors
    assert (engine.scheduler.preemptions > 0) == (blocks is not None)
    for a, p in cases:
        deltas = events.deltas[f"{a}-{p}"]
        told, tokens = deltas[0].prompt, rig.tokens(PROMPTS[p])
        expected = rig.likelihoods(a, tokens)
        own = [float(expected[i, token]) for i, token in enumerate(tokens[1:])]
        assert told is not None
        assert told.text == PROMPTS[p]
        assert [token.logprob for token in told.others] == pytest.approx(own, abs=1e-4)
        tops = [logprob for token in told.others for _, logprob in token.top]
        assert tops == pytest.approx(expected.topk(3).values.flatten().tolist(), abs=1e-4)
        assert len([token for delta in deltas for token in delta.tokens]) == (a + p) % 3
        assert events.text(f"{a}-{p}") == (rig.answer(a, PROMPTS[p], (a + p) % 3) if (a + p) % 3 else "")
        assert events.text(f"plain-{a}-{p}") == rig.expected(a, p)
    engine.check_integrity()


@dataclass(frozen=True)
class Arrival:
    """A request: at which step it comes, whether it scores instead of generating, and after how many steps its caller
    hangs up."""

    step: int
    adapter: int
    prompt: int
    scores: bool
    patience: int | None


arrivals_ = st.builds(
    Arrival,
    step=st.integers(0, 12),
    adapter=st.integers(0, 8),
    prompt=st.integers(0, len(PROMPTS) - 1),
    scores=st.sampled_from([False, False, False, True]),
    patience=st.sampled_from([None, None, None, 0, 1, 3, 8]),
)


#: The first three fill the small cache and outgrow it, the next two find what those computed, the rest take turns.
CROWD = [
    *(Arrival(step=0, adapter=0, prompt=prompt, scores=False, patience=None) for prompt in (2, 5, 0)),
    *(Arrival(step=2, adapter=0, prompt=prompt, scores=False, patience=None) for prompt in (6, 7)),
    *(Arrival(step=4, adapter=adapter, prompt=6, scores=False, patience=None) for adapter in range(1, 9)),
    *(Arrival(step=6, adapter=adapter, prompt=5, scores=False, patience=3) for adapter in range(1, 9)),
]

#: Together from the first step on, since they wait for no adapter: their steps are recorded and replayed.
QUIET = [Arrival(step=0, adapter=0, prompt=prompt, scores=False, patience=None) for prompt in (0, 1, 2, 4)]


def test_any_mixture_in_any_order_with_reuse_chunks_preemption_eviction_and_aborts(rig: Rig) -> None:
    from support.recorded_operations import replay_operations

    seen: Counter[str] = Counter()

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
    @given(
        arrivals=st.lists(arrivals_, min_size=4, max_size=20),
        budget=st.sampled_from([7, 33, 2048]),
        small=st.booleans(),
        slots=st.sampled_from([2, 8]),
        recorded=st.booleans(),
        native=st.booleans(),
        behind=st.booleans(),
    )
    @example(arrivals=CROWD, budget=33, small=True, slots=2, recorded=False, native=True, behind=False)
    @example(arrivals=CROWD, budget=2048, small=False, slots=8, recorded=True, native=False, behind=True)
    @example(arrivals=QUIET, budget=2048, small=False, slots=8, recorded=True, native=False, behind=True)
    def any_mixture(
        arrivals: list[Arrival], budget: int, small: bool, slots: int, recorded: bool, native: bool, behind: bool
    ) -> None:
        events = Recorder()
        with nullcontext() if native else no_compiler():
            engine = rig.engine(events, max_batch_tokens=budget, max_slots=slots, cuda_graphs=recorded)
        if small:
            # So small a cache that the longest prompt just fits: sequences push each other out.
            engine.runner.pool = engine.scheduler.pool = BlockPool(9, 16)
        engine.tells_behind = behind
        if recorded and TEST_DEVICE == "cpu":
            replay_operations(engine.runner)
        _run(rig, engine, arrivals, scoring=not small)
        assert not events.errors
        for i, arrival in enumerate(arrivals):
            _compare(rig, events, str(i), arrival, scoring=not small)
        engine.check_integrity()
        seen["reused"] += engine.scheduler.reused_tokens
        seen["preempted"] += engine.scheduler.preemptions
        seen["evicted"] += engine.slots.evictions
        seen["replayed"] += engine.runner.graphs.replays if recorded else 0
        seen["hung up"] += sum(arrival.patience is not None for arrival in arrivals)

    any_mixture()
    assert all(seen[what] > 0 for what in ("reused", "preempted", "evicted", "hung up", "replayed")), seen


def _run(rig: Rig, engine: Any, arrivals: list[Arrival], *, scoring: bool) -> None:
    pending = sorted(enumerate(arrivals), key=lambda item: item[1].step)
    leaving: list[tuple[int, str]] = []
    step = 0
    while pending or leaving:
        while pending and pending[0][1].step <= step:
            i, arrival = pending.pop(0)
            if arrival.scores and scoring:
                prompt, adapter = PromptInput(text=PROMPTS[arrival.prompt]), rig.adapters[arrival.adapter]
                engine.submit(ScoreRequest(str(i), prompt, CANDIDATES, adapter=adapter))
            else:
                engine.submit(request(rig, str(i), arrival.adapter, arrival.prompt))
            if arrival.patience is not None:
                leaving.append((step + arrival.patience, str(i)))
        engine.poll_adapters()
        engine.step()
        for name in [name for at, name in leaving if at <= step]:
            engine.abort(name)
        leaving = [(at, name) for at, name in leaving if at > step]
        step += 1
    drain(engine)


def _compare(rig: Rig, events: Recorder, name: str, arrival: Arrival, *, scoring: bool) -> None:
    """A whole answer equals the reference; what there is of one that was given up begins it."""
    if arrival.scores and scoring:
        if name in events.scores:
            found = [scored.logprob for scored in events.scores[name].scores]
            assert found == pytest.approx(rig.scores(arrival.adapter, arrival.prompt), rel=1e-4, abs=1e-3)
        assert name in events.scores or arrival.patience is not None
        return
    text = events.text(name) if name in events.deltas else ""
    expected = rig.expected(arrival.adapter, arrival.prompt)
    assert expected.startswith(text)
    assert text == expected if name in events.finished else arrival.patience is not None


@pytest.mark.parametrize("ending", [None, "\n"])
@pytest.mark.parametrize("adapter", range(9))
def test_scores_equal_the_reference(rig: Rig, adapter: int, ending: str | None) -> None:
    from graft_server.base_model.prompt import encode_target

    events = Recorder()
    engine = rig.engine(events, max_batch_tokens=100)
    candidates = ("a", "Toy Story (1995)", "Jumanji (1995)", "Toy", "z" * 300, *(f"film {i}" for i in range(40)))
    # Beside a running generation, so that the batch is mixed.
    engine.submit(request(rig, "beside", 0, 2))
    prompted = PromptInput(text=PROMPTS[2])
    engine.submit(ScoreRequest("score", prompted, candidates, adapter=rig.adapters[adapter], ending=ending))
    drain(engine)
    for candidate, scored in list(zip(candidates, events.scores["score"].scores, strict=True))[:8]:
        assert scored.tokens == len(encode_target(rig.tokenizer, candidate, ending=ending))
        assert scored.logprob == pytest.approx(rig.score(adapter, PROMPTS[2], candidate, ending), rel=1e-4, abs=1e-3)
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
