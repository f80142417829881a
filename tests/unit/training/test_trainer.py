"""The loop: the right loss, the right gradients, the same end after a break, and clear errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from graft_client.schemas.jobs import JobProgress
from graft_plugins.manager import PluginHost
from graft_server.training.checkpoint import read_checkpoint
from graft_server.training.loss import AnswerLoss
from graft_server.training.options import TrainingOptions
from graft_server.training.rows import TokenRow, collate
from graft_server.training.trainer import Hooks, Stopped, Trainer, TrainingError
from support.adapter_files import read_adapter

pytestmark = pytest.mark.torch

METHODS = ["lora", "rslora", "dora", "bottleneck", "output-head"]
LoadModel = Callable[[], Any]


def attached(host: PluginHost, name: str, model: Any, **options: Any) -> Any:
    method = host.method(name)
    return method.attach(model, method.options_model.model_validate({"r": 4} | options), seed=0)


def reference_loss(model: Any, rows: list[TokenRow]) -> torch.Tensor:
    """Full logits, one row at a time, without padding."""
    losses = []
    for row in rows:
        ids = torch.tensor(row.ids)
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        start = row.answer_start
        losses.append(functional.cross_entropy(logits[start - 1 : -1].float(), ids[start:], reduction="sum"))
    return torch.stack(losses).sum()


@pytest.mark.parametrize("name", METHODS)
def test_loss_and_gradients_are_those_of_full_logits_and_unfused_layers(
    name: str, host: PluginHost, load_model: LoadModel, rows: list[Any]
) -> None:
    plain = attached(host, name, load_model())
    torch.manual_seed(0)
    start = [torch.randn_like(p) * 0.05 for p in plain.parameters() if p.requires_grad]

    def shake(model: Any) -> list[Any]:
        trained = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            for parameter, noise in zip(trained, start, strict=True):
                parameter.add_(noise)
        return trained

    expected_parameters = shake(plain)
    expected = reference_loss(plain, rows[:6])
    expected.backward()

    fused = attached(host, name, load_model())
    trainer = Trainer(fused, host.method(name), rows, [], TrainingOptions(precision="fp32"))
    parameters = shake(fused)
    loss = trainer._loss(collate(rows[:6], "cpu"))
    loss.backward()
    assert torch.allclose(loss, expected, rtol=1e-5)
    for got, wanted in zip(parameters, expected_parameters, strict=True):
        assert torch.allclose(got.grad, wanted.grad, rtol=1e-3, atol=1e-4)


def test_dropout_reaches_only_the_update(host: PluginHost, load_model: LoadModel, rows: list[Any]) -> None:
    model = attached(host, "lora", load_model(), dropout=0.5)
    options = TrainingOptions(learning_rate=0.02, epochs=12, batch_size=8)
    trainer = Trainer(model, host.method("lora"), rows[8:], rows[:8], options)
    before = trainer.validation_loss()
    assert trainer.validation_loss() == before, "validation has no dropout"
    trainer.run()
    assert trainer.validation_loss() < before


def test_a_row_counts_the_same_alone_and_padded(host: PluginHost, load_model: LoadModel) -> None:
    loss = AnswerLoss(load_model())
    short, long = TokenRow((1, 70, 71, 2), 2), TokenRow((1, *range(60, 90), 2), 20)
    apart = loss(collate([short], "cpu")) + loss(collate([long], "cpu"))
    assert torch.allclose(loss(collate([short, long], "cpu")), apart, rtol=1e-5)


def test_accumulation_weighs_every_answer_token_the_same(
    host: PluginHost, load_model: LoadModel, rows: list[Any], tmp_path: Path
) -> None:
    """One batch of eight and four batches of two are the same step."""
    results = []
    for size, accumulation in ((8, 1), (2, 4)):
        options = TrainingOptions(
            batch_size=size, gradient_accumulation=accumulation, optimizer="sgd", learning_rate=0.1, max_steps=1
        )
        method = host.method("bottleneck")
        trainer = Trainer(attached(host, "bottleneck", load_model()), method, rows[:8], [], options)
        trainer.run()
        trainer.save(str(tmp_path / str(size)))
        results.append(read_adapter(tmp_path / str(size))[1])
    for name, tensor in results[0].items():
        assert torch.allclose(tensor, results[1][name], atol=1e-6), name


@pytest.mark.parametrize(("name", "precision"), [("lora", "bf16"), ("dora", "fp32"), ("bottleneck", "bf16")])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_broken_run_ends_like_an_unbroken_one(
    name: str,
    precision: str,
    optimizer: str,
    host: PluginHost,
    base: Any,
    rows: list[Any],
    tmp_path: Path,
) -> None:
    from graft_server.base_model.loading import load_model as load

    method = host.method(name)
    options = TrainingOptions.model_validate(
        {
            "epochs": 3,
            "batch_size": 4,
            "optimizer": optimizer,
            "precision": precision,
            "learning_rate": 1e-2,
            "checkpoint_every": 5,
            "eval_every": 7,
            "early_stopping_patience": 50,
        }
    )
    extra = {"dropout": 0.2} if name == "lora" else {}

    def fresh(checkpoints: Path | None, hooks: Hooks | None = None) -> Trainer:
        dtype = "bfloat16" if precision == "bf16" else "float32"
        model = attached(host, name, load(base, dtype=dtype, device="cpu"), **extra)
        return Trainer(model, method, rows[8:], rows[:8], options, checkpoints=checkpoints, hooks=hooks)

    unbroken = fresh(None)
    expected = unbroken.run()
    unbroken.save(str(tmp_path / "unbroken"))

    seen: list[JobProgress] = []
    broken = fresh(tmp_path / "checkpoints", Hooks(progress=seen.append, should_stop=lambda: len(seen) == 9))
    with pytest.raises(Stopped):
        broken.run()
    # A half-written checkpoint of a later kill is passed over.
    (tmp_path / "checkpoints" / "step-00000099").mkdir()
    resumed = fresh(tmp_path / "checkpoints")
    state = resumed.run()
    resumed.save(str(tmp_path / "resumed"))

    assert (state.step, state.tokens) == (expected.step, expected.tokens)
    assert state.eval_loss == pytest.approx(expected.eval_loss, rel=1e-5)
    wanted, got = read_adapter(tmp_path / "unbroken")[1], read_adapter(tmp_path / "resumed")[1]
    assert wanted.keys() == got.keys()
    for key, tensor in wanted.items():
        assert tensor.dtype == torch.float32
        assert torch.allclose(got[key], tensor, atol=1e-6), key


def test_the_last_two_checkpoints_are_kept_without_a_pickle(
    host: PluginHost, load_model: LoadModel, rows: list[Any], tmp_path: Path
) -> None:
    saved: list[int] = []
    options = TrainingOptions(batch_size=8, epochs=2, checkpoint_every=2)
    model = attached(host, "lora", load_model())
    hooks = Hooks(checkpoint=saved.append)
    Trainer(model, host.method("lora"), rows, [], options, checkpoints=tmp_path, hooks=hooks).run()
    assert saved == [2, 4, 6, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000006", "step-00000008"]
    kinds = {path.suffix for path in tmp_path.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".md"}
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint is not None
    assert checkpoint.state.step == 8


def test_early_stopping_keeps_the_best(host: PluginHost, load_model: LoadModel, rows: list[Any]) -> None:
    losses: list[float] = []
    options = TrainingOptions(
        learning_rate=0.3,
        schedule="constant",
        epochs=100,
        batch_size=8,
        eval_every=1,
        early_stopping_patience=3,
    )
    hooks = Hooks(progress=lambda progress: losses.append(progress.eval_loss or 0))
    trainer = Trainer(
        attached(host, "bottleneck", load_model()), host.method("bottleneck"), rows[8:], rows[:8], options, hooks=hooks
    )
    state = trainer.run()
    assert state.stopped_early
    assert state.step < trainer.total_steps
    assert trainer.validation_loss() == pytest.approx(min(losses), rel=1e-4)
    # The loss that is told of the run is that of the weights that it keeps.
    assert state.eval_loss == min(losses) < losses[-1]


def test_figures_are_told_each_step(host: PluginHost, load_model: LoadModel, rows: list[Any]) -> None:
    told: list[JobProgress] = []
    options = TrainingOptions(batch_size=8, epochs=2, eval_every=5)
    hooks = Hooks(progress=told.append)
    model = attached(host, "lora", load_model())
    Trainer(model, host.method("lora"), rows, rows[:4], options, hooks=hooks).run()
    assert [progress.step for progress in told] == list(range(1, 11))
    assert told[-1].tokens == 2 * sum(len(row.ids) for row in rows)
    assert told[-1].epoch == 2
    assert told[-1].eta_seconds == 0
    assert told[4].eval_loss is not None
    assert all(progress.tokens_per_second for progress in told)


def test_a_loss_that_is_no_number_ends_the_run_with_advice(
    host: PluginHost, load_model: LoadModel, rows: list[Any]
) -> None:
    model = attached(host, "lora", load_model())
    trainer = Trainer(model, host.method("lora"), rows, [], TrainingOptions(learning_rate=0.5))
    with torch.no_grad():
        model.get_input_embeddings().weight[70] = float("nan")
    with pytest.raises(TrainingError, match=r"no longer finite \(step 1: .* lower learning_rate, which is 0.5"):
        trainer.run()


def test_running_out_of_memory_says_what_to_lower(
    host: PluginHost, load_model: LoadModel, rows: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(attached(host, "lora", load_model()), host.method("lora"), rows, [], TrainingOptions())

    def fail(*_: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(trainer, "_loss", fail)
    with pytest.raises(TrainingError, match="out of memory on cpu with batch_size 16"):
        trainer.run()
