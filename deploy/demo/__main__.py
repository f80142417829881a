"""The main job from beginning to end, on real data, through the ``graft`` command: ``make demo``.

Fetches a base model and data, starts a server, trains three adapters, queries them by name, by task and in one mixed
batch, compares each with the base model on held-out rows, and writes ``build/demo-report.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo import report
from demo.data import base_model_spec, cache_dir, dataset
from demo.server import running_server
from graft_client import Client
from graft_client.schemas.predict import PredictRequest, SamplingOverrides

BUILD = Path("build")
#: Requests of the mixed batch, and tokens of each answer at most.
BATCH = 48
BATCH_TOKENS = 32


@dataclass(frozen=True)
class Story:
    """One adapter: what it is trained on and how long, and what it is asked afterwards."""

    task: str
    adapter: str
    data: str
    settings: tuple[str, ...]
    question: str
    #: What to choose from; ranking a whole catalogue takes seconds.
    candidates: tuple[str, ...] = ()


STORIES = (
    Story(
        "translation",
        "de-strings",
        "translation-de",
        ("max_steps=80", "eval_rows=64"),
        "The battery level is low.",
    ),
    Story(
        "domain-qa",
        "construction",
        "construction-qa",
        ("max_steps=100", "eval_rows=60"),
        "Who is responsible for safety on a construction site?",
    ),
    Story(
        "recommendation",
        "films",
        "films",
        ("max_steps=36", "eval_rows=60"),
        "Star Wars (1977); Empire Strikes Back, The (1980); Raiders of the Lost Ark (1981)",
        ("Return of the Jedi (1983)", "Fargo (1996)", "Toy Story (1995)", "Scream (1996)"),
    ),
)


def graft(*arguments: str, url: str) -> None:
    """Run the command line as a person would, and show it."""
    print(f"\n$ {shlex.join(['graft', *arguments])}", flush=True)
    command = [str(Path(sys.executable).parent / "graft"), *arguments]
    subprocess.run(command, check=True, env={**os.environ, "GRAFT_URL": url})


def train(story: Story, url: str) -> None:
    settings = [part for setting in story.settings for part in ("--set", setting)]
    data = str(dataset(story.data))
    graft("train", story.task, "--data", data, "--name", story.adapter, *settings, "--seed", "7", url=url)


def query(story: Story, url: str) -> None:
    """By name and by task."""
    asked = ("--input", json.dumps(request_of(story))) if story.candidates else (story.question,)
    graft("query", story.adapter, *asked, url=url)
    graft("query", "--task", story.task, *asked, url=url)


def request_of(story: Story) -> dict[str, Any]:
    """The story's question as a request of its task."""
    if story.task == "translation":
        return {"text": story.question}
    if story.task == "domain-qa":
        return {"question": story.question}
    return {"history": story.question.split("; "), "candidates": list(story.candidates)}


def measure_batch(client: Client, *, base_only: bool) -> float:
    """Generated tokens a second over one bulk request: the stories' questions in turn, and plain ones for the base
    model. ``base_only`` sends the same requests to the base model. Scored candidates are not counted as tokens."""
    items = []
    for i in range(BATCH):
        story = [*STORIES, None][i % (len(STORIES) + 1)]
        task = "chat" if story is None else story.task
        to_base = base_only or story is None
        items.append(
            PredictRequest(
                adapter="base" if story is None or base_only else story.adapter,
                task=task if to_base else None,
                input=request_of(story) if story is not None else None,
                text="Tell me about houses." if story is None else None,
                sampling=SamplingOverrides(max_tokens=BATCH_TOKENS),
            )
        )
    started = time.monotonic()
    tokens = 0
    for line in client.predict_bulk(items):
        if line.result is None:
            raise SystemExit(f"request {line.index} of the mixed batch failed: {line.problem}")
        if line.result.task != "recommendation":
            tokens += line.result.usage.completion_tokens
    return tokens / (time.monotonic() - started)


def mixed_batch(client: Client) -> dict[str, Any]:
    """Every adapter and the base model in one batch, and the same requests for the base model alone."""
    measure_batch(client, base_only=False)  # so that every adapter is in its slot
    refs = [client.adapter(story.adapter).versions[-1].ref for story in STORIES]
    return {
        "requests": BATCH,
        "adapters": [*refs, "base"],
        "tokens_per_second": measure_batch(client, base_only=False),
        "base_only_tokens_per_second": measure_batch(client, base_only=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--engine", default="torch")
    engine = parser.parse_args().engine
    started = time.monotonic()
    print("data:", flush=True)
    for story in STORIES:
        print(f"  {story.task}: {dataset(story.data)}", flush=True)
    data_dir = BUILD / "demo"
    shutil.rmtree(data_dir, ignore_errors=True)
    print(f"\n$ graft serve --base-model {base_model_spec()} --engine {engine} --data-dir {data_dir}", flush=True)
    with running_server(base_model_spec(), engine=engine, data_dir=data_dir, cache_dir=cache_dir()) as url:
        print(f"  ready at {url} after {time.monotonic() - started:.0f} s", flush=True)
        for story in STORIES:
            train(story, url)
        for story in STORIES:
            query(story, url)
        graft("adapters", "list", url=url)
        with Client(url) as client:
            print("\none mixed batch ...", flush=True)
            measured = mixed_batch(client)
            versions = [client.adapter(story.adapter).versions[-1] for story in STORIES]
            result = report.document(client.status(), versions, measured)
    path = BUILD / "demo-report.json"
    report.write(result, path)
    print()
    report.show(result)
    print(f"wrote {path}; {(time.monotonic() - started) / 60:.1f} minutes in all", flush=True)


if __name__ == "__main__":
    main()
