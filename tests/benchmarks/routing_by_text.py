"""How often ``auto`` is right: nine adapters, held-out rows of each, and texts that none of them is for.

The adapters are profiles of real training rows, without the rows that are asked: English to German, French, Spanish,
Italian and Dutch interface texts, questions on construction law in English and Swedish, conversations, and films. A
request is what the task makes of a held-out row, as somebody sends it who says what is wanted: "Translate from English
to German.", then the text. Without that sentence nothing can tell the five languages apart, for their sources are the
same texts; ``auto_right_bare`` is what is left then for adapters that translate the other way, so that each has a
language of its own. It counts as wrong whatever falls below the server's own threshold.

``auto_rejected`` is the share of ``fixtures/unrelated.txt`` (questions, code, chores, in eleven languages) that falls
below it. The threshold was chosen with other texts than these. ``auto_1000_over_9`` is the median time of a decision
among 1,000 adapters over that among nine.

    PYTHONPATH=tests:deploy python tests/benchmarks/routing_by_text.py --base-model FOLDER
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from options import parser, turns
from report import Figure, median, ratio, write_report

from demo.data import dataset
from graft_plugins.dataset import load_dataset
from graft_plugins.manager import PluginHost
from graft_server.config import Settings
from graft_server.routing.auto.catalogue import prompt_texts, text_of
from graft_server.routing.auto.index import ProfileIndex
from graft_server.routing.auto.profiles import MOST_TEXTS, Profile, profile_of

LANGUAGES = ("de", "fr", "es", "it", "nl")
HELD_OUT = 100
THRESHOLD = Settings.model_fields["auto_threshold"].default
UNRELATED = Path(__file__).parents[1] / "fixtures" / "unrelated.txt"


@dataclass(frozen=True)
class Adapter:
    """A profile and what is asked of its adapter: as its task puts it, and the last message alone."""

    profile: Profile
    asked: list[str]
    bare: list[str]


def adapter(host: PluginHost, task_name: str, files: Iterable[Path]) -> Adapter:
    """Splits as training does, so that no template is on both sides."""
    task = host.task(task_name)
    examples = load_dataset(host.readers, task, list(files), None).examples
    split = task.split(examples, test_rows=HELD_OUT, seed=42)
    state = task.fit_state(split.train)
    profile = profile_of(prompt_texts(task, state, _spread(split.train)))
    assert profile is not None
    prompts = [task.prompt(task.request_for(example, state), state) for example in split.test[:HELD_OUT]]
    bare = [prompt.text or prompt.messages[-1].content for prompt in prompts]
    return Adapter(profile, [text_of(prompt) for prompt in prompts], bare)


def _spread(rows: list[Any]) -> list[Any]:
    """At most as many rows as a profile is made of, from the whole file."""
    return rows[:: -(-len(rows) // MOST_TEXTS)]


def others(host: PluginHost) -> dict[str, Adapter]:
    films = dataset("films")
    return {
        "qa-en": adapter(host, "domain-qa", [dataset("construction-qa")]),
        "qa-sv": adapter(host, "domain-qa", [dataset("construction-qa-sv")]),
        "chat": adapter(host, "chat", [dataset("chat")]),
        "films": adapter(host, "recommendation", [films / "ml-100k.inter", films / "ml-100k.item"]),
    }


def turned(file: Path, folder: Path) -> Path:
    """The same rows, translated the other way."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    pairs = (("source", "target"), ("source_language", "target_language"))
    swap = {name: other for pair in pairs for name, other in (pair, pair[::-1])}
    path = folder / file.name
    path.write_text("".join(json.dumps({swap.get(k, k): v for k, v in row.items()}) + "\n" for row in rows))
    return path


def share_right(index: ProfileIndex, asked: Mapping[str, list[str]]) -> float:
    right = total = 0
    for name, texts in asked.items():
        for text in texts:
            best = index.match(text)[:1]
            right += bool(best) and best[0].name == name and best[0].confidence >= THRESHOLD
            total += 1
    return right / total


def share_rejected(index: ProfileIndex, texts: list[str]) -> float:
    matches = [index.match(text)[:1] for text in texts]
    return sum(not best or best[0].confidence < THRESHOLD for best in matches) / len(texts)


def seconds(index: ProfileIndex, texts: list[str]) -> float:
    """The median time of one decision."""
    taken = []
    for text in texts:
        started = time.perf_counter()
        index.match(text)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    arguments = parser(__doc__).parse_args()
    host = PluginHost.load(only="")
    rest = others(host)
    to = {code: adapter(host, "translation", [dataset(f"translation-{code}")]) for code in LANGUAGES} | rest
    index = ProfileIndex({name: each.profile for name, each in to.items()})
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{code}-en": turned(dataset(f"translation-{code}"), Path(folder)) for code in LANGUAGES}
        back = {name: adapter(host, "translation", [file]) for name, file in files.items()} | rest
    bare = ProfileIndex({name: each.profile for name, each in back.items()})
    unrelated = UNRELATED.read_text(encoding="utf-8").splitlines()
    copies = -(-1000 // len(to))
    many = ProfileIndex({f"{name}-{n}": each.profile for n in range(copies) for name, each in to.items()})
    texts = [text for each in to.values() for text in each.asked]
    times: dict[str, list[float]] = {"nine": [], "many": []}
    for _, side in turns(arguments.pairs, ("nine", "many")):
        times[side].append(seconds(index if side == "nine" else many, texts) * 1000)
    write_report(
        "routing_by_text",
        [
            median("auto_right", [share_right(index, {n: each.asked for n, each in to.items()})], "of requests"),
            median("auto_rejected", [share_rejected(index, unrelated)], "of texts"),
            median("auto_right_bare", [share_right(bare, {n: each.bare for n, each in back.items()})], "of requests"),
            Figure("auto_ms_1000", statistics.median(times["many"]), "ms", samples=times["many"]),
            ratio("auto_1000_over_9", times["many"], times["nine"]),
        ],
    )


if __name__ == "__main__":
    main()
