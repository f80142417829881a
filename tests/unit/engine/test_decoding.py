"""What a request can ask of decoding, through the engine's own loop on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from graft_server.base_model import BaseModel, resolve
from graft_server.engine.base import ConstraintSpec, GenerateRequest, PromptInput, SamplingParams, ScoreRequest
from support.device import TEST_DEVICE
from support.recorder import Recorder, drain
from support.tiny_model import save_tiny_model

pytestmark = pytest.mark.torch

PROMPT = "Turn off the lights in the kitchen, please."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("decoding")
    return resolve(str(save_tiny_model(folder / "model")), folder / "cache")


class Loop:
    """An engine with its events and a count of the tokens that its steps compute."""

    def __init__(self, base: BaseModel, **settings: Any) -> None:
        from graft_server.engine.messages import EngineConfig
        from graft_server.engine.torch.engine import TorchEngine

        chosen: dict[str, Any] = {"device": TEST_DEVICE, "dtype": "float32", "kv_cache_mib": 16, **settings}
        config = EngineConfig(engine="torch", base_model=str(base.path), cache_dir="", **chosen)
        self.events = Recorder()
        self.engine = TorchEngine(base, config, {}, self.events)
        self.computed: list[int] = []
        forward, hidden = self.engine.runner.forward, self.engine.runner.hidden

        def counted(of: Any) -> Any:
            def call(chunks: Any) -> Any:
                self.computed.append(sum(chunk.count for chunk in chunks))
                return of(chunks)

            return call

        self.engine.runner.forward = counted(forward)  # type: ignore[method-assign]
        self.engine.runner.hidden = counted(hidden)  # type: ignore[method-assign]

    def submit(self, name: str, constraint: ConstraintSpec | None = None, **sampling: Any) -> None:
        params = SamplingParams(**{"max_tokens": 12, **sampling})
        self.engine.submit(GenerateRequest(name, PromptInput(text=PROMPT), params, constraint=constraint))

    def text(self, constraint: ConstraintSpec | None = None, **sampling: Any) -> str:
        """The answer to the prompt, alone."""
        name = f"request {len(self.events.deltas)}"
        self.submit(name, constraint, **sampling)
        drain(self.engine)
        assert not self.events.errors
        return self.events.text(name)

    def ids(self, text: str) -> list[int]:
        return list(self.engine.tokenizer(text)["input_ids"])


@pytest.fixture(scope="module")
def loop(base: BaseModel) -> Loop:
    return Loop(base)


@pytest.fixture(scope="module")
def plain(loop: Loop) -> str:
    """The greedy answer to the prompt. Its last letter is a token of its own, and not its first."""
    text = loop.text(ignore_eos=True)
    assert len(loop.ids(text[-1])) == 1
    assert 1 < text.index(text[-1]) < 8
    return text


def test_tokens_are_passed_on_while_the_next_step_is_computed(base: BaseModel) -> None:
    loop = Loop(base)
    loop.engine.tells_behind = True
    passed: list[int] = []
    loop.events.flush = lambda: passed.append(len(loop.events.deltas["told"]))  # type: ignore[method-assign]
    loop.submit("told", max_tokens=4, logit_bias={loop.ids("a")[0]: 100.0})
    told: list[int] = []
    while not loop.engine.idle:
        loop.engine.step()
        told.append(len(loop.events.deltas.get("told", [])))
    # With the last step there is no next one to wait for.
    assert told == [0, 1, 2, 4]
    assert passed == [1, 2, 3, 4]
    assert loop.events.text("told") == "aaaa"
    loop.engine.check_integrity()


def test_an_answer_given_up_is_not_told_to_its_end(base: BaseModel) -> None:
    loop = Loop(base)
    loop.engine.tells_behind = True
    loop.submit("kept", max_tokens=8, ignore_eos=True)
    loop.submit("given up", max_tokens=8, ignore_eos=True)
    for _ in range(3):
        loop.engine.step()
    told = list(loop.events.deltas["given up"])
    loop.engine.abort("given up")
    drain(loop.engine)
    assert loop.events.deltas["given up"] == told
    assert loop.events.deltas["kept"][-1].completion_tokens == 8
    loop.engine.check_integrity()


def test_a_bias_of_100_decides_every_token(loop: Loop) -> None:
    (token,) = loop.ids("q")
    assert loop.text(logit_bias={token: 100.0}, temperature=1.0) == "q" * 12


def test_a_bias_of_minus_100_rules_a_token_out(loop: Loop, plain: str) -> None:
    banned = loop.ids(plain)[0]
    assert not loop.text(logit_bias={banned: -100.0}, ignore_eos=True).startswith(plain[0])


def test_a_frequency_penalty_ends_a_loop(loop: Loop) -> None:
    (token,) = loop.ids("q")
    biased = {token: 2.0}
    stuck = loop.text(logit_bias={token: 100.0}, ignore_eos=True)
    freed = loop.text(logit_bias=biased, frequency_penalty=2.0, repetition_penalty=5.0, ignore_eos=True)
    assert len(set(stuck)) == 1
    assert len(set(freed)) > 1


def test_a_stop_token_ends_the_answer_and_is_not_returned(loop: Loop, plain: str) -> None:
    (stop,) = loop.ids(plain[-1])
    assert loop.text(stop_token_ids=(stop,), ignore_eos=True) == plain[: plain.index(plain[-1])]


def test_nothing_ends_an_answer_before_min_tokens(loop: Loop, plain: str) -> None:
    (end,) = loop.ids("<|im_end|>")
    assert loop.text(logit_bias={end: 100.0}) == ""
    name = "waits"
    loop.submit(name, logit_bias={end: 100.0}, min_tokens=5, stop=(plain[0],))
    drain(loop.engine)
    last = loop.events.deltas[name][-1]
    # Five tokens, and the end itself.
    assert (last.finish_reason, last.completion_tokens) == ("stop", 6)


def test_a_stop_string_that_is_complete_before_min_tokens_is_text(loop: Loop, plain: str) -> None:
    stop = plain[-1]
    assert loop.text(stop=(stop,), ignore_eos=True) == plain[: plain.index(stop)]
    later = loop.text(stop=(stop,), min_tokens=8, ignore_eos=True)
    assert later == plain[:8]


def test_a_complete_constraint_ends_before_min_tokens(loop: Loop) -> None:
    constraint = ConstraintSpec("choices", choices=("yes", "no"))
    assert loop.text(constraint, min_tokens=10) in ("yes", "no")


def test_constrained_rows_of_one_step_keep_their_own_grammars(loop: Loop) -> None:
    patterns = {"digits": "[0-9]{4}", "letters": "[a-f]{5}", "word": "alpha|beta"}
    for name, pattern in patterns.items():
        loop.submit(name, ConstraintSpec("regex", pattern=pattern), temperature=1.0, seed=1)
        loop.submit(f"free {name}", ignore_eos=True)
    drain(loop.engine)
    assert loop.events.text("digits").isdigit()
    assert len(loop.events.text("digits")) == 4
    assert set(loop.events.text("letters")) <= set("abcdef")
    assert loop.events.text("word") in ("alpha", "beta")
    assert len({loop.events.text(f"free {name}") for name in patterns}) == 1


def test_a_constraint_that_cant_be_followed_further_is_no_answer(loop: Loop) -> None:
    loop.submit(
        "grown", ConstraintSpec("regex", pattern="([ab]{1,400}a){300}c"), max_tokens=480, temperature=1.0, seed=3
    )
    drain(loop.engine)
    assert "can't be followed to the end" in str(loop.events.errors.pop("grown"))
    assert "grown" not in loop.events.finished
    assert loop.engine.runner.pool.used == 0


def test_logprobs_are_the_models_within_the_constraint(loop: Loop) -> None:
    constraint = ConstraintSpec("choices", choices=("yes", "no"))
    loop.submit("bound", constraint, logprobs=2, temperature=3.0, seed=4, logit_bias={loop.ids("y")[0]: -50.0})
    drain(loop.engine)
    first = next(token for delta in loop.events.deltas["bound"] for token in delta.tokens)
    assert first.token == b"n"
    assert {token for token, _ in first.top} == {b"y", b"n"}
    assert sum(math.exp(logprob) for _, logprob in first.top) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("sampling", [{"logit_bias": {320: 1.0}}, {"stop_token_ids": (7, 100_000)}], ids=str)
def test_a_token_that_the_model_has_not_is_refused_by_name(loop: Loop, sampling: dict[str, Any]) -> None:
    name = f"unknown {next(iter(sampling))}"
    loop.submit(name, **sampling)
    error = loop.events.errors.pop(name)
    assert error.code == "invalid-request"
    assert next(iter(sampling)) in str(error)
    assert "0 to 319" in str(error)


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9, "top_k": 50},
        {"temperature": 1.5, "min_p": 0.05, "repetition_penalty": 1.3},
        {"temperature": 0.8, "presence_penalty": 1.0, "frequency_penalty": 0.5, "logit_bias": {70: 3.0}},
    ],
    ids=str,
)
def test_a_seed_gives_the_same_answer_alone_and_among_others(loop: Loop, sampling: dict[str, Any]) -> None:
    alone = loop.text(seed=7, ignore_eos=True, **sampling)
    for i in range(6):
        loop.submit(f"{alone} other {i}", seed=i, temperature=1.0, top_k=10 * i, presence_penalty=0.3 * i)
    assert loop.text(seed=7, ignore_eos=True, **sampling) == alone


def test_answers_to_one_prompt_compute_it_once(base: BaseModel) -> None:
    loop = Loop(base)
    for i in range(6):
        loop.submit(f"choice {i}", seed=i, temperature=1.0, max_tokens=1)
    drain(loop.engine)
    prompt = len(loop.ids(PROMPT))
    # What fills no block of 16 is computed for each.
    rest = (prompt - 1) % 16 + 1
    assert loop.computed == [prompt + 5 * rest]
    assert len(loop.events.finished) == 6


def test_choices_in_one_step_are_what_each_is_alone(base: BaseModel) -> None:
    loop = Loop(base)
    for i in range(6):
        loop.submit(f"choice {i}", seed=i, temperature=1.0, ignore_eos=True)
    drain(loop.engine)
    for i in range(6):
        assert loop.text(seed=i, temperature=1.0, ignore_eos=True) == loop.events.text(f"choice {i}")


def test_candidates_share_their_prompt_and_so_do_scorings(base: BaseModel) -> None:
    loop = Loop(base)
    candidates = tuple(f"film {i:02}" for i in range(80))
    prompt = len(loop.ids(PROMPT))
    # A candidate is 7 bytes and its end; the last token of each needs no logits behind it.
    behind = 80 * 7
    loop.engine.submit(ScoreRequest("first", PromptInput(text=PROMPT), candidates))
    drain(loop.engine)
    assert sum(loop.computed) == prompt + behind
    loop.computed.clear()
    loop.engine.submit(ScoreRequest("again", PromptInput(text=PROMPT), candidates))
    drain(loop.engine)
    assert sum(loop.computed) == (prompt - 1) % 16 + 1 + behind
    first, again = loop.events.scores["first"], loop.events.scores["again"]
    assert [scored.logprob for scored in again.scores] == pytest.approx([s.logprob for s in first.scores], abs=1e-4)


def test_candidates_behind_a_sliding_window_are_what_each_is_alone(tmp_path: Path) -> None:
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    folder = save_tiny_model(tmp_path / "model")
    config = {**json.loads((folder / "config.json").read_text()), "model_type": "mistral", "sliding_window": 24}
    torch.manual_seed(3)
    model = MistralForCausalLM(MistralConfig(**config)).eval()
    model.save_pretrained(folder)
    loop = Loop(resolve(str(folder), tmp_path / "cache"))
    prompt, labels = PROMPT + " again and again", ("first", "second one", "third", "a fourth label", "last")
    loop.engine.submit(ScoreRequest("together", PromptInput(text=prompt), labels))
    drain(loop.engine)
    together = [scored.logprob for scored in loop.events.scores["together"].scores]
    begun = loop.ids(prompt)
    for label, logprob in zip(labels, together, strict=True):
        target = [*loop.ids(label), loop.engine.tokenizer.eos_token_id]
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([begun + target])).logits[0].log_softmax(-1)
        expected = sum(float(logits[len(begun) - 1 + i, token]) for i, token in enumerate(target))
        assert logprob == pytest.approx(expected, abs=1e-3)


def embeddings(loop: Loop, *texts: str) -> list[list[float]]:
    name = f"embed {len(loop.events.embeddings)}"
    loop.engine.embed(name, texts)
    drain(loop.engine)
    return loop.events.embeddings[name].vectors


def test_a_text_to_embed_has_its_turn_while_others_keep_the_cache_full(base: BaseModel) -> None:
    loop = Loop(base, kv_cache_mib=1)
    sampling, submitted = SamplingParams(max_tokens=40, ignore_eos=True), 0

    def step() -> None:
        """With sixty requests in the engine, for which the cache has not enough blocks."""
        nonlocal submitted
        while submitted - len(loop.events.finished) < 60:
            submitted += 1
            loop.engine.submit(GenerateRequest(f"{submitted}", PromptInput(text=f"{submitted:04}"), sampling))
        loop.engine.step()

    for _ in range(20):
        step()
    loop.engine.embed("long", ("x" * 400,))
    steps = 0
    while "long" not in loop.events.embeddings:
        step()
        steps += 1
        assert steps < 200
    assert loop.events.embeddings["long"].prompt_tokens == 400


def test_embeddings_are_the_mean_hidden_states_normalised(loop: Loop, base: BaseModel) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    texts = ["a beam", "Turn off the lights", "x" * 70]
    vectors = embeddings(loop, *texts)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.inference_mode():
            hidden = model.model(torch.tensor([loop.ids(text)])).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=0)
        assert vector == pytest.approx(expected.tolist(), abs=1e-4)
    assert embeddings(loop) == []


def test_embeddings_are_computed_in_batches_between_the_steps_of_answers(base: BaseModel) -> None:
    loop = Loop(base, max_batch_tokens=64)
    texts = (*(f"text number {i}" for i in range(20)), "long " * 30)
    alone = embeddings(Loop(base), *texts)
    answer = Loop(base).text(ignore_eos=True)
    loop.submit("beside", ignore_eos=True)
    loop.engine.step()
    loop.engine.embed("many", texts)
    loop.engine.embed("few", texts[:2])
    embedded_after, steps = 0, 0
    while not loop.engine.idle:
        loop.engine.step()
        steps += 1
        if "many" in loop.events.embeddings and not embedded_after:
            embedded_after = steps
    tokens = sum(len(loop.ids(text)) for text in texts)
    assert embedded_after == -(-tokens // 64)
    assert loop.events.embeddings["many"].prompt_tokens == tokens
    assert max(loop.computed) <= 64
    for vector, expected in zip(loop.events.embeddings["many"].vectors, alone, strict=True):
        assert vector == pytest.approx(expected, abs=1e-4)
    assert loop.events.embeddings["few"].vectors[1] == pytest.approx(alone[1], abs=1e-4)
    assert loop.events.text("beside") == answer
    assert loop.engine.runner.pool.used == 0


def test_texts_wait_for_blocks_and_an_aborted_call_gives_its_own_back(base: BaseModel) -> None:
    from graft_server.engine.torch.block_pool import BlockPool

    loop = Loop(base, max_batch_tokens=64)
    loop.engine.runner.pool = loop.engine.scheduler.pool = BlockPool(6, 16)
    loop.submit("beside", ignore_eos=True)  # takes three blocks, later four
    loop.engine.step()
    loop.engine.embed("waits", ("a" * 90,))
    loop.engine.step()
    assert "waits" not in loop.events.embeddings
    drain(loop.engine)
    assert len(loop.events.embeddings["waits"].vectors) == 1
    loop.engine.embed("gone", ("b" * 90,))
    loop.engine.step()
    assert loop.engine.runner.pool.used == 6
    loop.engine.abort("gone")
    assert loop.engine.runner.pool.used == 0
    assert loop.engine.idle


def test_a_text_that_does_not_fit_fails_its_own_call_only(loop: Loop) -> None:
    loop.engine.embed("long", ("short", "y" * 600))
    loop.engine.embed("fine", ("short",))
    drain(loop.engine)
    assert loop.events.errors.pop("long").code == "prompt-too-long"
    assert "long" not in loop.events.embeddings
    assert len(loop.events.embeddings["fine"].vectors) == 1
