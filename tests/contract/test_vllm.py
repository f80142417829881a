"""vLLM beside the torch engine: the same answers, and a core that is killed comes back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from graft_server.base_model import BaseModel, resolve
from graft_server.engine.base import (
    AdapterLoadError,
    AdapterSource,
    EngineDiedError,
    EngineUnavailableError,
    GenerateRequest,
    PromptInput,
    SamplingParams,
    ScoreRequest,
)
from graft_server.engine.messages import EngineConfig
from graft_server.engine.supervisor import SupervisedEngine
from graft_server.engine.vllm.versions import installed_version
from support.adapters import random_adapter
from support.tiny_model import save_tiny_model

pytestmark = [
    pytest.mark.torch,
    pytest.mark.vllm,
    pytest.mark.skipif(installed_version() is None, reason="vLLM is not installed; `make test-vllm` installs it"),
]

PROMPTS = ("Hello", "The film was", "A much longer prompt, of several dozen tokens in this vocabulary of bytes.")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = tmp_path_factory.mktemp("vllm")
    return resolve(str(save_tiny_model(folder / "model", head_dim=32)), folder / "cache")


@pytest.fixture(scope="module")
def adapters(base: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> list[AdapterSource]:
    folder = tmp_path_factory.mktemp("adapters")
    kinds = ("lora", "rslora", "lora")
    return [
        random_adapter(base, kind, folder / str(i), seed=i, engine_id=i + 1, r=4 * (i + 1))[0]
        for i, kind in enumerate(kinds)
    ]


def engine_of(base: BaseModel, name: str) -> SupervisedEngine:
    return SupervisedEngine(
        EngineConfig(
            engine=name,
            base_model=str(base.path),
            cache_dir=str(base.path.parent / "cache"),
            device="cpu",
            dtype="float32",
            kv_cache_mib=16,
            max_slots=4,
        )
    )


async def text_of(engine: SupervisedEngine, request: GenerateRequest) -> str:
    return "".join([delta.text async for delta in engine.generate(request)])


def ask(name: str, prompt: str, adapter: AdapterSource | None, tokens: int = 16) -> GenerateRequest:
    return GenerateRequest(name, PromptInput(text=prompt), SamplingParams(max_tokens=tokens, ignore_eos=True), adapter)


async def answers(engine: SupervisedEngine, adapters: list[AdapterSource]) -> tuple[list[str], list[float]]:
    """Greedy answers, all in one batch, and the log-probabilities of two candidates."""
    pairs = [(prompt, adapter) for prompt in PROMPTS for adapter in [None, *adapters]]
    texts = [text_of(engine, ask(f"t{i}", prompt, adapter)) for i, (prompt, adapter) in enumerate(pairs)]
    scorings = [
        engine.score(ScoreRequest(f"s{i}", PromptInput(text=prompt), ("yes", "no"), adapter))
        for i, (prompt, adapter) in enumerate(pairs)
    ]
    got = await asyncio.gather(*texts)
    scored = await asyncio.gather(*scorings)
    return got, [one.logprob for result in scored for one in result.scores]


async def test_both_engines_answer_alike(base: BaseModel, adapters: list[AdapterSource]) -> None:
    results = []
    for name in ("torch", "vllm"):
        engine = engine_of(base, name)
        await engine.start()
        try:
            results.append(await answers(engine, adapters))
        finally:
            await engine.stop()
    (texts, scores), (vllm_texts, vllm_scores) = results
    assert len(set(texts)) > len(PROMPTS)
    assert vllm_texts == texts
    assert vllm_scores == pytest.approx(scores, abs=1e-3)


async def test_nobody_waits_for_a_compiler(
    base: BaseModel, adapters: list[AdapterSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = tmp_path / "compiled"
    compiled.mkdir()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(compiled))
    engine = engine_of(base, "vllm")
    await engine.start()
    try:
        sampling = SamplingParams(max_tokens=4, temperature=1.0, logprobs=2)
        await text_of(engine, GenerateRequest("sampled", PromptInput(text="Hello"), sampling, adapters[0]))
        await engine.score(ScoreRequest("scored", PromptInput(text="Hello"), ("yes", "no"), None))
    finally:
        await engine.stop()
    assert not [path for path in compiled.rglob("*") if path.is_file()]


async def test_a_model_that_vllm_cannot_step_fails_at_the_start(tmp_path: Path) -> None:
    # Heads of 16 numbers: vLLM loads the model, and has no attention for it on CPUs.
    engine = engine_of(resolve(str(save_tiny_model(tmp_path / "model")), tmp_path / "cache"), "vllm")
    with pytest.raises(EngineUnavailableError, match=r'first token.*engine = "torch"'):
        await engine.start()
    assert engine.state == "failed"
    await engine.stop()


def misnamed(adapter: AdapterSource, folder: Path) -> AdapterSource:
    """The adapter with names that match no module of the base model."""
    folder.mkdir()
    shutil.copy(Path(adapter.path) / "adapter_config.json", folder)
    tensors = load_file(Path(adapter.path) / "adapter_model.safetensors")
    renamed = {name.replace(".layers.", ".towers."): tensor for name, tensor in tensors.items()}
    save_file(renamed, folder / "adapter_model.safetensors")
    return AdapterSource("misnamed@1", 60, str(folder), "lora")


async def test_a_killed_core_is_rebuilt_under_load(
    base: BaseModel, adapters: list[AdapterSource], tmp_path: Path
) -> None:
    engine = engine_of(base, "vllm")
    await engine.start()
    try:
        expected = [await text_of(engine, ask(f"before{i}", "Hello", adapter)) for i, adapter in enumerate(adapters)]
        streams = [engine.generate(ask(f"load{i}", "Hello", adapter, 400)) for i, adapter in enumerate(adapters)]
        await asyncio.gather(*(anext(stream) for stream in streams))
        assert engine.pid is not None
        core = psutil.Process(engine.pid).children(recursive=True)
        for process in core:
            process.kill()
        with pytest.raises(EngineDiedError):
            async for _ in streams[0]:
                pass
        assert engine.state == "rebuilding"
        again = [text_of(engine, ask(f"after{i}", "Hello", adapter)) for i, adapter in enumerate(adapters)]
        assert await asyncio.gather(*again) == expected
        assert engine.restarts == 1
        assert {adapter.ref for adapter in adapters} <= set((await engine.stats()).loaded)
        assert not [process for process in core if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
        with pytest.raises(AdapterLoadError, match='engine = "torch"'):
            await engine.validate(AdapterSource("d@1", 50, adapters[0].path, "dora"))
        with pytest.raises(AdapterLoadError, match="towers"):
            await engine.validate(misnamed(adapters[0], tmp_path / "misnamed"))
        head, _ = random_adapter(base, "lora", tmp_path / "head", seed=7, engine_id=70, target_modules=["lm_head"])
        with pytest.raises(AdapterLoadError, match="output layer 'lm_head'"):
            await engine.validate(head)
    finally:
        await engine.stop()


async def test_scores_and_loads_that_a_dead_core_had_are_replayed(
    base: BaseModel, adapters: list[AdapterSource]
) -> None:
    engine = engine_of(base, "vllm")
    await engine.start()
    try:
        request = ScoreRequest("score", PromptInput(text="Hello"), ("yes", "no"), adapters[0])
        scores = [one.logprob for one in (await engine.score(request)).scores]
        assert engine.pid is not None
        core = psutil.Process(engine.pid).children(recursive=True)
        # Stopped first, so that both are with it when it dies.
        for process in core:
            process.suspend()
        scoring = asyncio.create_task(engine.score(request))
        loading = asyncio.create_task(engine.load(adapters[1]))
        await asyncio.sleep(1)
        for process in core:
            process.kill()
        assert [one.logprob for one in (await scoring).scores] == pytest.approx(scores)
        await loading
        assert engine.restarts == 1
        assert adapters[1].ref in (await engine.stats()).loaded
    finally:
        await engine.stop()
