"""Training speed against ``transformers.Trainer`` with PEFT and full padded logits.

Both train the same LoRA (r 16, all linear layers) on the same rows in the same batch size and precision, on the
same machine, in short alternating pairs. Tokens are all tokens of the rows, without padding.

    python tests/benchmarks/train_over_trainer.py --base-model FOLDER --data rows.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import Figure, ratio, write_report
from rich.console import Console

from graft_plugins.dataset import load_dataset
from graft_plugins.manager import PluginHost
from graft_server.base_model import BaseModel
from graft_server.base_model.device import choose_device, choose_dtype
from graft_server.base_model.loading import load_model, load_tokenizer
from graft_server.base_model.prompt import encode_prompt, encode_target
from graft_server.base_model.source import resolve
from graft_server.plugins import server_plugins
from graft_server.training.options import TrainingOptions
from graft_server.training.rows import TokenRow
from graft_server.training.trainer import Trainer

RANK, ALPHA, LEARNING_RATE = 16, 32, 1e-3


def read_rows(host: PluginHost, base: BaseModel, data: Path, task_name: str, count: int) -> list[TokenRow]:
    task = host.task(task_name)
    dataset = load_dataset(host.readers, task, [data])
    if dataset.fatal:
        raise dataset.fatal
    tokenizer = load_tokenizer(base)
    pairs = task.training_pairs(dataset.examples, task.fit_state(dataset.examples))
    rows = []
    for pair in itertools.islice(pairs, count):
        prompt = encode_prompt(tokenizer, pair.prompt.messages, pair.prompt.text)
        rows.append(TokenRow((*prompt, *encode_target(tokenizer, pair.target)), len(prompt)))
    return rows


def ours(host: PluginHost, model: Any, rows: list[TokenRow], batch_size: int) -> float:
    """Seconds of one epoch."""
    method = host.method("lora")
    attached = method.attach(model, method.options_model.model_validate({"r": RANK, "alpha": ALPHA}), seed=0)
    options = TrainingOptions(learning_rate=LEARNING_RATE, batch_size=batch_size)
    trainer = Trainer(attached, method, rows, [], options)
    started = time.perf_counter()
    trainer.run()
    return time.perf_counter() - started


def theirs(model: Any, rows: list[TokenRow], batch_size: int, bf16: bool) -> float:
    """Seconds of one epoch."""
    import transformers
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    attached = get_peft_model(model, config)

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["ids"]) for row in batch)
        shape = (len(batch), longest)
        inputs, mask, labels = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -100)
        for index, row in enumerate(batch):
            ids = torch.tensor(row["ids"])
            inputs[index, : len(ids)] = ids
            mask[index, : len(ids)] = 1
            labels[index, row["start"] : len(ids)] = ids[row["start"] :]
        return {"input_ids": inputs, "attention_mask": mask, "labels": labels}

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        seconds = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter()

        def on_train_end(self, *_: Any, **__: Any) -> None:
            self.seconds = time.perf_counter() - self.seconds

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=batch_size,
            num_train_epochs=1,
            learning_rate=LEARNING_RATE,
            weight_decay=0.0,
            bf16=bf16,
            use_cpu=attached.device.type == "cpu",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        dataset: Any = [{"ids": row.ids, "start": row.answer_start} for row in rows]
        transformers.Trainer(
            model=attached, args=arguments, train_dataset=dataset, data_collator=collate, callbacks=[clock]
        ).train()
    return clock.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-model", required=True, help="as for graft serve")
    parser.add_argument("--data", required=True, type=Path, help="rows of the task")
    parser.add_argument("--task", default="translation")
    parser.add_argument("--rows", type=int, default=64, help="rows of one measurement")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--cache-dir", type=Path, default=Path("~/.cache/graftwork"))
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    host = PluginHost.load(only="", extra=server_plugins())
    base = resolve(arguments.base_model, arguments.cache_dir)
    rows = read_rows(host, base, arguments.data, arguments.task, arguments.rows * arguments.pairs)
    if len(rows) < arguments.rows * arguments.pairs:
        parser.error(f"{arguments.data} has {len(rows)} rows, but {arguments.rows * arguments.pairs} are needed")
    device = choose_device(arguments.device)
    dtype = choose_dtype({"bf16": "bfloat16", "fp32": "float32"}.get(arguments.precision, "auto"), device)

    def speed(side: str, some: list[TokenRow]) -> float:
        """Tokens per second."""
        model = load_model(base, dtype=dtype, device=device)
        if side == "ours":
            seconds = ours(host, model, some, arguments.batch_size)
        else:
            seconds = theirs(model, some, arguments.batch_size, dtype == "bfloat16")
        return sum(len(row.ids) for row in some) / seconds

    console = Console()
    speeds: dict[str, list[float]] = {"ours": [], "trainer": []}
    for side in speeds:
        speed(side, rows[: arguments.batch_size])
    for pair in range(arguments.pairs):
        # Who goes first alternates, so that a machine that slows down is unfair to neither.
        for side in sorted(speeds, reverse=bool(pair % 2)):
            speeds[side].append(speed(side, rows[pair * arguments.rows : (pair + 1) * arguments.rows]))
            console.print(f"pair {pair + 1}: {side} {speeds[side][-1]:.0f} tokens/s")
    figures = [ratio("train_over_trainer", speeds["ours"], speeds["trainer"])]
    figures += [
        Figure(f"{side}_tokens_per_second", sorted(values)[len(values) // 2], "tokens/s", samples=values)
        for side, values in speeds.items()
    ]
    write_report("train_over_trainer", figures)


if __name__ == "__main__":
    main()
