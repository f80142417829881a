"""The engine contract, over every engine, in its real process: what the rest of the server relies on."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from graft_server.base_model import BaseModel, resolve
from graft_server.base_model.loading import load_tokenizer
from graft_server.engine.base import (
    LOAD_SECONDS,
    AdapterLoadError,
    AdapterSource,
    ChatMessage,
    ConstraintSpec,
    Embeddings,
    EngineDiedError,
    EngineUnavailableError,
    GenerateRequest,
    InvalidRequestError,
    PromptInput,
    PromptTooLongError,
    SamplingParams,
    ScoreRequest,
    TokenLogprob,
    ToolCall,
)
from graft_server.engine.messages import HEADER, EngineConfig
from graft_server.engine.supervisor import SupervisedEngine
from graft_server.engine.vllm.versions import installed_version
from support.adapters import random_adapter
from support.device import TEST_DEVICE
from support.tiny_model import save_tiny_model

pytestmark = [pytest.mark.torch, pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("engine")
    return resolve(str(save_tiny_model(folder / "model", head_dim=32)), folder / "cache")


@pytest.fixture(scope="module")
def adapter(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> AdapterSource:
    folder = tmp_path_factory.mktemp("adapter") / "lora"
    return random_adapter(base, "lora", folder, seed=1, engine_id=1, r=4)[0]


def config(base: BaseModel, engine: str) -> EngineConfig:
    return EngineConfig(
        engine=engine,
        base_model=str(base.path),
        cache_dir=str(base.path.parent / "cache"),
        device=TEST_DEVICE,
        dtype="float32",
        kv_cache_mib=16,
        max_slots=2,
    )


VLLM = pytest.param(
    "vllm",
    marks=[
        pytest.mark.vllm,
        pytest.mark.skipif(installed_version() is None, reason="vLLM is not installed; `make test-vllm` installs it"),
    ],
)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["torch", VLLM])
async def engine(request: pytest.FixtureRequest, base: BaseModel) -> AsyncIterator[SupervisedEngine]:
    engine = SupervisedEngine(config(base, request.param))
    await engine.start()
    yield engine
    await engine.stop()


async def text_of(engine: SupervisedEngine, request: GenerateRequest) -> str:
    return "".join([delta.text async for delta in engine.generate(request)])


def ask(name: str, *, adapter: AdapterSource | None = None, tokens: int = 8, prompt: str = "Hello") -> GenerateRequest:
    return GenerateRequest(name, PromptInput(text=prompt), SamplingParams(max_tokens=tokens, ignore_eos=True), adapter)


async def wait_for(condition: Callable[[], Awaitable[bool]], what: str, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await condition():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(what)


async def test_it_says_what_it_is(engine: SupervisedEngine, base: BaseModel) -> None:
    assert engine.state == "ready"
    assert engine.model.fingerprint == base.fingerprint
    assert engine.model.context_length == 512
    assert "lora" in engine.capabilities.methods
    assert engine.capabilities.slots == 2


async def test_an_answer_can_come_in_larger_pieces(engine: SupervisedEngine) -> None:
    # Letters, so that each token is text at once.
    letters = SamplingParams(max_tokens=20, ignore_eos=True, logit_bias={67: 100.0})
    request = GenerateRequest("large", PromptInput(text="Hello"), letters, tokens_per_delta=8)
    deltas = [delta async for delta in engine.generate(request)]
    assert "".join(delta.text for delta in deltas) == "a" * 20
    assert [delta.completion_tokens for delta in deltas] == [1, 8, 16, 20]


async def test_deltas_add_up_and_the_last_one_counts(engine: SupervisedEngine) -> None:
    deltas = [delta async for delta in engine.generate(ask("count"))]
    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].completion_tokens == 8
    assert deltas[-1].prompt_tokens == len("Hello")
    assert all(delta.finish_reason is None for delta in deltas[:-1])
    counts = [delta.completion_tokens for delta in deltas]
    assert counts == sorted(counts)


async def test_adapters_and_base_answer_side_by_side_as_alone(engine: SupervisedEngine, adapter: AdapterSource) -> None:
    alone = [await text_of(engine, ask("base")), await text_of(engine, ask("adapter", adapter=adapter))]
    assert alone[0] != alone[1]
    names = [f"mixed{i}" for i in range(10)]
    together = await asyncio.gather(
        *(text_of(engine, ask(name, adapter=adapter if i % 2 else None)) for i, name in enumerate(names))
    )
    assert together == alone * 5


async def test_chat_messages_are_rendered(engine: SupervisedEngine) -> None:
    chat = PromptInput(messages=(ChatMessage("user", "Hi"),))
    deltas = [d async for d in engine.generate(GenerateRequest("chat", chat, SamplingParams(max_tokens=1)))]
    assert deltas[-1].prompt_tokens > len("Hi")


async def test_a_prompt_can_be_tokens(engine: SupervisedEngine, base: BaseModel) -> None:
    tokens = tuple(load_tokenizer(base)("Hello")["input_ids"])
    sampling = SamplingParams(max_tokens=8, ignore_eos=True)
    assert await text_of(engine, GenerateRequest("ids", PromptInput(tokens=tokens), sampling)) == await text_of(
        engine, ask("text")
    )
    with pytest.raises(InvalidRequestError, match="`prompt` names the token 999999"):
        await text_of(engine, GenerateRequest("odd", PromptInput(tokens=(1, 999999)), sampling))


async def test_tools_and_calls_cross_to_the_template(engine: SupervisedEngine) -> None:
    # The tiny model's template has no tools; the turns are there all the same.
    assert engine.model.tool_syntax is None
    call = ToolCall("call_1", "clock", '{"zone": "UTC"}')
    turns = (
        ChatMessage("user", "Hi"),
        ChatMessage("assistant", "", (call,)),
        ChatMessage("tool", "noon", tool_call_id="call_1"),
    )
    tool = '{"type": "function", "function": {"name": "clock", "parameters": {"type": "object"}}}'
    request = GenerateRequest("tools", PromptInput(messages=turns, tools=(tool,)), SamplingParams(max_tokens=1))
    deltas = [delta async for delta in engine.generate(request)]
    assert deltas[-1].prompt_tokens > len("Hi") + len("noon")


async def text_with(
    engine: SupervisedEngine, name: str, constraint: ConstraintSpec | None = None, **sampling: Any
) -> str:
    params = SamplingParams(**{"max_tokens": 12, "ignore_eos": True, **sampling})
    return await text_of(engine, GenerateRequest(name, PromptInput(text="Hello"), params, constraint=constraint))


async def test_a_bias_decides_and_rules_out(engine: SupervisedEngine) -> None:
    # A letter is one token of the tiny model; 67 is "a".
    assert await text_with(engine, "biased", logit_bias={67: 100.0}) == "a" * 12
    others = {token: -100.0 for token in range(320) if token != 67}
    assert await text_with(engine, "ruled out", logit_bias=others) == "a" * 12


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 2.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}], ids=str
)
async def test_penalties_break_up_what_repeats(engine: SupervisedEngine, penalty: dict[str, float]) -> None:
    def most_common(text: str) -> int:
        return max(Counter(text).values())

    looping = await text_with(engine, f"without {penalty}", max_tokens=60)
    assert most_common(looping) > 20
    assert most_common(await text_with(engine, f"with {penalty}", max_tokens=60, **penalty)) < most_common(looping)


async def test_min_p_of_one_draws_the_likeliest(engine: SupervisedEngine) -> None:
    greedy = await text_with(engine, "the likeliest")
    assert await text_with(engine, "min_p 1", temperature=1.0, min_p=1.0, seed=1) == greedy
    assert await text_with(engine, "min_p 0", temperature=2.0, min_p=0.0, seed=1) != greedy


async def test_stop_tokens_end_an_answer_whose_own_end_is_ignored(engine: SupervisedEngine) -> None:
    bias = {67: 100.0}
    assert await text_with(engine, "stop token", logit_bias=bias, stop_token_ids=(67,)) == ""
    waiting = await text_with(engine, "waits", logit_bias=bias, stop_token_ids=(67,), min_tokens=3)
    assert "a" not in waiting
    assert len(waiting) >= 1


async def test_min_tokens_holds_the_models_own_end_back(engine: SupervisedEngine) -> None:
    end = {2: 100.0}  # <|im_end|>
    assert await text_with(engine, "ends", logit_bias=end, ignore_eos=False) == ""
    request = GenerateRequest("held", PromptInput(text="Hello"), SamplingParams(logit_bias=end, min_tokens=4))
    last = [delta async for delta in engine.generate(request)][-1]
    assert (last.finish_reason, last.completion_tokens) == ("stop", 5)


@pytest.mark.parametrize("seed", [11, -1])
async def test_a_seed_repeats_an_answer_whatever_runs_beside_it(engine: SupervisedEngine, seed: int) -> None:
    rules: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2, "seed": seed}
    alone = await text_with(engine, "seeded alone", **rules)
    others = [text_with(engine, f"beside {i}", temperature=2.0, top_k=5 + i, seed=i) for i in range(6)]
    together, *rest = await asyncio.gather(text_with(engine, "seeded together", **rules), *others)
    assert together == alone
    assert len(set(rest)) > 1


async def test_constraints_of_several_requests_in_one_batch(engine: SupervisedEngine) -> None:
    patterns = ["[0-9]{3}", "[a-c]{4}", "yes|no"]
    specs = [ConstraintSpec("regex", pattern=pattern) for pattern in patterns]
    texts = await asyncio.gather(
        *(text_with(engine, f"bound {i}", spec, ignore_eos=False) for i, spec in enumerate(specs))
    )
    assert all(re.fullmatch(pattern, text) for pattern, text in zip(patterns, texts, strict=True)), texts


async def test_logprobs_are_the_models_own(engine: SupervisedEngine) -> None:
    async def first(name: str, **sampling: Any) -> TokenLogprob:
        params = SamplingParams(max_tokens=1, ignore_eos=True, logprobs=3, **sampling)
        deltas = [d async for d in engine.generate(GenerateRequest(name, PromptInput(text="Hello"), params))]
        return next(token for delta in deltas for token in delta.tokens)

    plain = await first("plain logprobs")
    changed = await first("changed logprobs", temperature=2.0, logit_bias={67: 100.0}, presence_penalty=2.0, seed=1)
    assert changed.token == b"a"
    assert dict(changed.top) == pytest.approx(dict(plain.top))
    assert changed.logprob < plain.logprob


@pytest.mark.parametrize("max_tokens", [0, 1])
async def test_a_prompt_tells_how_likely_it_is(
    engine: SupervisedEngine, base: BaseModel, adapter: AdapterSource, max_tokens: int
) -> None:
    """As likely as the same text is when it is scored, piece by piece."""
    name, text = f"echo {max_tokens}", "Film: A tale"
    tokens = tuple(load_tokenizer(base)(text)["input_ids"])
    params = SamplingParams(max_tokens=max_tokens, logprobs=2)
    request = GenerateRequest(name, PromptInput(tokens=tokens), params, adapter, echo=True)
    deltas = [delta async for delta in engine.generate(request)]
    told = deltas[0].prompt
    assert told is not None
    assert all(delta.prompt is None for delta in deltas[1:])
    assert (told.text, told.first + b"".join(token.token for token in told.others)) == (text, text.encode())
    assert sum(len(delta.tokens) for delta in deltas) == deltas[-1].completion_tokens == max_tokens
    assert (deltas[-1].prompt_tokens, deltas[-1].finish_reason) == (len(tokens), "length")
    assert all(len(token.top) == 2 and token.top[0][1] >= token.logprob for token in told.others)

    behind = ScoreRequest(f"behind {name}", PromptInput(tokens=tokens[:6]), (text[6:],), adapter, ending="!")
    scored = await engine.score(behind)
    whole = PromptInput(text=f"{text}!")
    with_ending = GenerateRequest(f"whole {name}", whole, SamplingParams(max_tokens=0), adapter, echo=True)
    (delta,) = [delta async for delta in engine.generate(with_ending)]
    assert delta.prompt is not None
    expected = sum(token.logprob for token in delta.prompt.others[5:])
    assert scored.scores[0].logprob == pytest.approx(expected, abs=1e-3)


async def test_the_end_of_an_answer_is_told_behind_an_echoed_prompt(engine: SupervisedEngine, base: BaseModel) -> None:
    end = load_tokenizer(base).convert_tokens_to_ids("<|im_end|>")
    params = SamplingParams(max_tokens=4, logprobs=1, logit_bias={end: 100.0})
    for echo in (True, False):
        request = GenerateRequest(f"end {echo}", PromptInput(text="Hello"), params, echo=echo)
        deltas = [delta async for delta in engine.generate(request)]
        told = [token.token for delta in deltas for token in delta.tokens]
        assert told == ([b"<|im_end|>"] if echo else [])
        assert (deltas[-1].finish_reason, deltas[-1].completion_tokens) == ("stop", 1)


async def test_scoring(engine: SupervisedEngine, adapter: AdapterSource) -> None:
    result = await engine.score(ScoreRequest("s", PromptInput(text="Film:"), ("A", "Bcd"), adapter))
    assert [scored.tokens for scored in result.scores] == [2, 4]
    assert all(scored.logprob < 0 for scored in result.scores)


@pytest.mark.parametrize("length", [20, 31, 32, 33, 64, 90])
async def test_scores_do_not_depend_on_what_the_cache_has(
    engine: SupervisedEngine, adapter: AdapterSource, length: int
) -> None:
    prompt = PromptInput(text=f"{length}: ".ljust(length, "x"))
    candidates = ("y" * 40, "yy" * 40, "z" * 40)
    first, again = [
        await engine.score(ScoreRequest(f"{length} {time}", prompt, candidates, adapter)) for time in ("first", "again")
    ]
    alone = [await engine.score(ScoreRequest(f"{length} alone", prompt, (one,), adapter)) for one in candidates]
    expected = pytest.approx([one.logprob for one in first.scores], abs=1e-3)
    assert [one.logprob for one in again.scores] == expected
    assert [result.scores[0].logprob for result in alone] == expected


async def test_embedding(engine: SupervisedEngine) -> None:
    if engine.capabilities.engine == "vllm":
        with pytest.raises(InvalidRequestError, match="torch"):
            await engine.embed(["one"])
        return
    embedded = await engine.embed(["one", "two", *(f"text {i}" for i in range(30))])
    assert len(embedded.vectors) == 32
    assert len(embedded.vectors[0]) == 64
    alone = await engine.embed(["two"])
    assert alone.vectors[0] == pytest.approx(embedded.vectors[1], abs=1e-4)
    assert alone.prompt_tokens == len("two")
    assert await engine.embed([]) == Embeddings([], 0)
    with pytest.raises(PromptTooLongError, match="600 tokens"):
        await engine.embed(["short", "x" * 600])


async def test_leaving_early_aborts(engine: SupervisedEngine) -> None:
    stream = engine.generate(ask("early", tokens=400))
    await anext(stream)
    await stream.aclose()

    async def at_rest() -> bool:
        stats = await engine.stats()
        return stats.running == 0 and stats.kv_blocks_used == 0

    await wait_for(at_rest, "the aborted request still runs", seconds=5)


async def test_more_adapters_than_slots_take_turns(engine: SupervisedEngine, base: BaseModel, tmp_path: Path) -> None:
    sources = [random_adapter(base, "lora", tmp_path / str(i), seed=i, engine_id=100 + i, r=4)[0] for i in range(5)]
    before = await engine.stats()
    first = [await text_of(engine, ask(f"one{i}", adapter=source)) for i, source in enumerate(sources)]
    again = await asyncio.gather(*(text_of(engine, ask(f"all{i}", adapter=source)) for i, source in enumerate(sources)))
    assert again == first
    assert len(set(first)) == 5
    after = await engine.stats()
    assert len(after.loaded) <= 2
    # Each is read once and stays in host memory; through two slots they go twice, and all but the last two leave again.
    assert len(after.load_counts) == len(LOAD_SECONDS) + 1
    assert sum(after.load_counts) - sum(before.load_counts) == 5
    assert after.evictions - before.evictions >= 6
    assert after.load_seconds > before.load_seconds


async def test_a_pinned_adapter_stays_while_others_take_turns(
    engine: SupervisedEngine, base: BaseModel, tmp_path: Path
) -> None:
    sources = [random_adapter(base, "lora", tmp_path / str(i), seed=i, engine_id=200 + i, r=4)[0] for i in range(4)]
    pinned, *others = sources
    expected = [await text_of(engine, ask(f"alone{i}", adapter=source)) for i, source in enumerate(sources)]
    for _ in range(2):
        await engine.pin(pinned)
    with pytest.raises(InvalidRequestError, match="1 of 2 slots are pinned, and one has to stay free"):
        await engine.pin(others[0])
    before = (await engine.stats()).evictions
    for source, text in zip(others * 2, expected[1:] * 2, strict=True):
        assert await text_of(engine, ask("turn", adapter=source)) == text
        assert pinned.ref in (await engine.stats()).loaded
    assert (await engine.stats()).evictions - before >= 5
    assert await text_of(engine, ask("pinned", adapter=pinned)) == expected[0]
    await engine.unpin(pinned.engine_id)
    for source in others:
        await text_of(engine, ask("after", adapter=source))
    assert pinned.ref not in (await engine.stats()).loaded


async def test_a_pin_that_fails_takes_no_slot(engine: SupervisedEngine, adapter: AdapterSource, tmp_path: Path) -> None:
    with pytest.raises(AdapterLoadError, match="missing"):
        await engine.pin(AdapterSource("none@1", 60, str(tmp_path), "lora"))
    await engine.pin(adapter)
    await engine.unpin(adapter.engine_id)


async def test_what_is_fetched_ahead_is_not_read_again(
    engine: SupervisedEngine, base: BaseModel, tmp_path: Path
) -> None:
    source, _ = random_adapter(base, "lora", tmp_path / "ahead", seed=9, engine_id=210, r=4)
    before = sum((await engine.stats()).load_counts)

    async def read_once() -> bool:
        return sum((await engine.stats()).load_counts) == before + 1

    engine.prefetch(source)
    await wait_for(read_once, "it was not fetched ahead", seconds=10)
    assert source.ref not in (await engine.stats()).loaded
    await text_of(engine, ask("ahead", adapter=source))
    assert await read_once()


async def test_unloading_frees_the_slot(engine: SupervisedEngine, adapter: AdapterSource) -> None:
    await engine.load(adapter)
    assert adapter.ref in (await engine.stats()).loaded
    await engine.unload(adapter.engine_id)

    async def gone() -> bool:
        return adapter.ref not in (await engine.stats()).loaded

    await wait_for(gone, "still loaded", seconds=5)


async def test_errors_reach_the_caller_with_their_type(
    engine: SupervisedEngine, adapter: AdapterSource, tmp_path: Path
) -> None:
    with pytest.raises(PromptTooLongError, match="600 tokens"):
        await text_of(engine, ask("long", prompt="x" * 600))
    with pytest.raises(AdapterLoadError, match="missing"):
        await engine.validate(AdapterSource("none@1", 50, str(tmp_path), "lora"))
    with pytest.raises(InvalidRequestError, match="no candidates"):
        await engine.score(ScoreRequest("empty", PromptInput(text="x"), ()))
    for name, sampling in (("logit_bias", {"logit_bias": {320: 1.0}}), ("stop_token_ids", {"stop_token_ids": (-1,)})):
        with pytest.raises(InvalidRequestError, match=f"`{name}` names the token"):
            await text_with(engine, name, **sampling)
    folder = tmp_path / "wide"
    folder.mkdir()
    wide = {**json.loads((Path(adapter.path) / "adapter_config.json").read_text()), "r": 128}
    (folder / "adapter_config.json").write_text(json.dumps(wide))
    (folder / "adapter_model.safetensors").write_bytes((Path(adapter.path) / "adapter_model.safetensors").read_bytes())
    with pytest.raises(AdapterLoadError, match="128"):
        await engine.validate(AdapterSource("wide@1", 51, str(folder), "lora"))


async def test_a_killed_engine_is_rebuilt_and_what_streamed_nothing_is_replayed(
    engine: SupervisedEngine, adapter: AdapterSource
) -> None:
    expected = await text_of(engine, ask("before", adapter=adapter))
    await engine.load(adapter)
    started = engine.generate(ask("started", tokens=400))
    await anext(started)
    restarts = engine.restarts
    assert engine.pid is not None
    # Stopped first, so that these are in flight and have streamed nothing when it dies.
    os.kill(engine.pid, signal.SIGSTOP)
    waiting = [asyncio.create_task(text_of(engine, ask(f"waiting{i}", adapter=adapter))) for i in range(5)]
    await asyncio.sleep(0)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="SIGKILL"):
        async for _ in started:
            pass
    assert engine.state == "rebuilding"
    assert await asyncio.gather(*waiting) == [expected] * 5
    assert engine.state == "ready"
    assert engine.restarts == restarts + 1
    assert adapter.ref in (await engine.stats()).loaded


async def test_an_engine_that_cannot_read_its_server_is_replaced(engine: SupervisedEngine) -> None:
    expected = await text_of(engine, ask("before"))
    restarts = engine.restarts
    assert engine._writer is not None
    engine._writer.write(HEADER.pack(7) + b"garbage")
    # Sent behind it, so that the old engine never sees it.
    assert await asyncio.wait_for(text_of(engine, ask("behind")), timeout=180) == expected
    assert engine.restarts == restarts + 1


async def test_a_killed_engine_has_its_pins_again(engine: SupervisedEngine, base: BaseModel, tmp_path: Path) -> None:
    sources = [random_adapter(base, "lora", tmp_path / str(i), seed=i, engine_id=220 + i, r=4)[0] for i in range(3)]
    pinned, *others = sources
    await engine.pin(pinned)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGKILL)

    async def rebuilt() -> bool:
        return engine.state == "ready" and pinned.ref in (await engine.stats()).loaded

    await wait_for(rebuilt, "the pinned adapter is not there again", seconds=180)
    for source in others * 2:
        await text_of(engine, ask("turn", adapter=source))
        assert pinned.ref in (await engine.stats()).loaded
    with pytest.raises(InvalidRequestError, match="can't be pinned"):
        await engine.pin(others[0])
    await engine.unpin(pinned.engine_id)


async def test_a_base_model_that_cannot_be_loaded_says_why(base: BaseModel, tmp_path: Path) -> None:
    engine = SupervisedEngine(
        EngineConfig(engine="torch", base_model=str(tmp_path / "nothing"), cache_dir=str(tmp_path))
    )
    with pytest.raises(EngineUnavailableError, match="nothing"):
        await engine.start()
    assert engine.state == "failed"
    with pytest.raises(EngineUnavailableError):
        await text_of(engine, ask("never"))


async def test_an_engine_whose_process_cannot_be_made_says_why(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    engine = SupervisedEngine(EngineConfig(engine="torch", base_model=str(base.path), cache_dir=str(tmp_path)))
    with pytest.raises(EngineUnavailableError, match=r"can't be started: .*Cannot allocate memory"):
        await engine.start()
    assert engine.state == "failed"


async def test_the_engine_does_not_outlive_its_server(base: BaseModel) -> None:
    program = (
        "import asyncio, sys\n"
        "from graft_server.engine.messages import EngineConfig\n"
        "from graft_server.engine.supervisor import SupervisedEngine\n"
        "async def main():\n"
        f"    engine = SupervisedEngine(EngineConfig(engine='torch', base_model={str(base.path)!r}, "
        f"cache_dir={str(base.path.parent / 'cache')!r}, kv_cache_mib=16))\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    pid = int(await asyncio.to_thread(server.stdout.readline))
    server.kill()
    server.wait()
    server.stdout.close()

    async def gone() -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE

    await wait_for(gone, "the engine outlived its server", seconds=10)
