"""Recommendation of the next item from a history, by the likelihood of candidate titles."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, Field, field_validator, model_validator

from graft_plugins.hookspecs import hookimpl
from graft_plugins.metrics import RANKING_METRICS, mean
from graft_plugins.task import (
    AnyTask,
    Metric,
    Output,
    Prompt,
    Report,
    RequestError,
    Score,
    Scores,
    Split,
    Task,
    TrainingPair,
)

#: Items of a history that the model reads.
HISTORY_ITEMS = 16
#: The end of a line belongs to its title, or a title could not be told from a longer one.
_LINE_END = "\n"
#: Items of a history that can lose one: two are left to learn from.
_SHORTEST = 3
#: Sampled negatives beside the next item when measuring.
NEGATIVES = 49


class HistoryExample(BaseModel):
    """What one user took, oldest first. ``next`` is the item that came after, where it is held out."""

    user: str | None = None
    history: list[str] = Field(min_length=1, description="Titles, oldest first.")
    timestamps: list[float] | None = Field(None, description="One a title; the history is sorted by them.")
    next: str | None = Field(None, description="The item taken after the history.")

    @field_validator("user", mode="before")
    @classmethod
    def _user_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("history", mode="before")
    @classmethod
    def _from_cell(cls, value: Any) -> Any:
        """A table has one cell for the titles, separated by ``|``."""
        return [title.strip() for title in value.split("|")] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _sorted(self) -> HistoryExample:
        if self.timestamps is not None:
            if len(self.timestamps) != len(self.history):
                raise ValueError(f"{len(self.history)} titles and {len(self.timestamps)} timestamps")
            order = sorted(range(len(self.history)), key=self.timestamps.__getitem__)
            self.history = [self.history[index] for index in order]
            self.timestamps = [self.timestamps[index] for index in order]
        return self

    @property
    def sequence(self) -> list[str]:
        """The whole history with ``next`` at its end."""
        return [*self.history, self.next] if self.next is not None else self.history


class RecommendationRequest(BaseModel):
    """A history, and the items to choose from; without ``candidates``, the adapter's catalogue."""

    history: list[str] = Field(min_length=1, description="Titles, oldest first.")
    candidates: list[str] | None = Field(None, min_length=1, description="Titles to rank.")
    k: int = Field(10, ge=1, le=1000, description="How many to return.")


class RankedItem(BaseModel):
    title: str
    score: float = Field(description="Natural-log probability of the title, normalised by its length.")


class RecommendationResponse(BaseModel):
    """The best items, best first."""

    items: list[RankedItem]


class Catalogue(BaseModel):
    """Every title of the training rows and how often it was taken."""

    counts: dict[str, int] = {}


class RecommendationTask(Task[HistoryExample, RecommendationRequest, RecommendationResponse, Catalogue]):
    """Evaluates as He et al. (2017): the last item of each user against sampled items the user never took."""

    name = "recommendation"
    title = "Recommendation"
    description = "A history of titles in, the titles most likely to come next out, from candidates or a catalogue."
    example_model = HistoryExample
    request_model = RecommendationRequest
    response_model = RecommendationResponse
    state_model = Catalogue
    field_aliases: ClassVar[Mapping[str, str]] = {"user_id": "user", "items": "history", "target": "next"}
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "learning_rate": 1e-3,
        "epochs": 1,
        "batch_size": 16,
        "warmup_ratio": 0.1,
        "max_length": 1024,
    }
    example_request: ClassVar[Mapping[str, Any]] = {
        "history": ["Toy Story (1995)", "Babe (1995)"],
        "candidates": ["Heat (1995)", "Chicken Run (2000)"],
    }

    # Data

    def split(self, examples: Sequence[HistoryExample], *, test_rows: int, seed: int) -> Split[HistoryExample]:
        """Temporal leave-one-out: every user's last item leaves the training rows, and those of about
        ``test_rows`` users are measured. A history of fewer than three items only trains."""
        users = _merged(examples)
        measured = _drawn(users, test_rows, seed)
        return Split(train=[_earlier(user) for user in users], test=[_with_next(user) for user in measured])

    def validation_split(
        self, train: Sequence[HistoryExample], *, validation_rows: int, seed: int
    ) -> Split[HistoryExample]:
        """The last item of about ``validation_rows`` users; the others keep theirs."""
        users = _merged(train)
        watched = _drawn(users, validation_rows, seed)
        lose_one = {id(user) for user in watched}
        kept = [_earlier(user) if id(user) in lose_one else user for user in users]
        return Split(train=kept, test=[_with_next(user) for user in watched])

    def fit_state(self, train: Sequence[HistoryExample]) -> Catalogue:
        counts = Counter(title for example in train for title in example.sequence)
        return Catalogue(counts=dict(sorted(counts.items())))

    def training_pairs(self, train: Sequence[HistoryExample], state: Catalogue) -> Iterator[TrainingPair]:
        """Every history in pieces, each item of a piece but the first to be learnt from those before it (as SASRec
        trains: Kang and McAuley 2018). Shuffled, the same for the same rows."""
        pieces = [piece for example in train for piece in _pieces(example)]
        random.Random(len(pieces)).shuffle(pieces)
        for first, *rest in pieces:
            yield TrainingPair(prompt=_list_of([first]), target=_lines(rest))

    def validation_pairs(self, watched: Sequence[HistoryExample], state: Catalogue) -> Iterator[TrainingPair]:
        """The next item behind as much as serving reads: the rest of a history is trained on."""
        for history, following in map(_question, watched):
            if following is not None:
                yield TrainingPair(prompt=_list_of(history[-HISTORY_ITEMS:]), target=_lines([following]))

    def request_for(self, example: HistoryExample, state: Catalogue) -> RecommendationRequest:
        """The next item among sampled negatives, all of them to be ranked."""
        history, following = _question(example)
        if following is None:
            raise RequestError("a history of one item has no next item to predict")
        candidates = [following, *_negatives(history, following, state)]
        # In an order that says nothing about which is which.
        candidates.sort(key=lambda title: hashlib.sha256(title.encode()).digest())
        return RecommendationRequest(history=history, candidates=candidates, k=len(candidates))

    def target(self, example: HistoryExample) -> str:
        return example.sequence[-1]

    # Serving

    def prompt(self, request: RecommendationRequest, state: Catalogue) -> Prompt:
        """A plain list that goes on: what training has seen, and what any language model continues."""
        return _list_of(request.history[-HISTORY_ITEMS:])

    def decoding(self, request: RecommendationRequest, state: Catalogue) -> Score:
        if request.candidates is not None:
            return _score(dict.fromkeys(request.candidates))
        if not state.counts:
            raise RequestError("there is no catalogue to recommend from; send `candidates` with the request")
        seen = set(request.history)
        candidates = [title for title in state.counts if title not in seen]
        if not candidates:
            raise RequestError("the history holds the whole catalogue; send `candidates` with the request")
        return _score(candidates)

    def parse(self, request: RecommendationRequest, output: Output, state: Catalogue) -> RecommendationResponse:
        assert isinstance(output, Scores)
        ranked = sorted(output.candidates, key=lambda candidate: -candidate.normalised)
        best = [RankedItem(title=item.text, score=item.normalised) for item in ranked[: request.k]]
        return RecommendationResponse(items=best)

    def request_from_text(self, text: str) -> RecommendationRequest:
        """Titles separated by line ends or semicolons."""
        titles = [title.strip() for title in text.replace(";", "\n").splitlines() if title.strip()]
        if not titles:
            raise RequestError("name at least one item, several separated by semicolons")
        return RecommendationRequest(history=titles)

    def text_of(self, response: RecommendationResponse) -> str:
        return "\n".join(f"{place}. {item.title}" for place, item in enumerate(response.items, start=1))

    # Measuring

    def evaluate(self, pairs: Sequence[tuple[HistoryExample, RecommendationResponse]], state: Catalogue) -> Report:
        ranks: list[list[int | None]] = []
        for example, response in pairs:
            titles = [item.title for item in response.items]
            following = self.target(example)
            ranks.append([titles.index(following) + 1 if following in titles else None])
        return _report(ranks)

    def baselines(self, test: Sequence[HistoryExample], state: Catalogue) -> dict[str, Report]:
        """What chance and popularity score on the same candidates, as expectations over ties."""
        by_chance: list[list[int | None]] = []
        by_popularity: list[list[int | None]] = []
        for example in test:
            candidates = self.request_for(example, state).candidates or []
            by_chance.append(list(range(1, len(candidates) + 1)))
            own = state.counts.get(self.target(example), 0)
            counts = [state.counts.get(title, 0) for title in candidates]
            above = sum(count > own for count in counts)
            by_popularity.append(list(range(above + 1, above + counts.count(own) + 1)))
        return {"random": _report(by_chance), "popularity": _report(by_popularity)}


def _drawn(users: Sequence[HistoryExample], most: int, seed: int) -> list[HistoryExample]:
    """At most so many of the users whose last item can be held out, the same ones for the same seed."""
    able = [user for user in users if len(user.sequence) >= _SHORTEST]
    return sorted(able, key=lambda user: _digest(str(seed), user))[:most]


def _earlier(user: HistoryExample) -> HistoryExample:
    """The history without its last item, where that can be held out."""
    items = user.sequence
    return HistoryExample(user=user.user, history=items[:-1] if len(items) >= _SHORTEST else items)


def _with_next(user: HistoryExample) -> HistoryExample:
    return HistoryExample(user=user.user, history=user.sequence[:-1], next=user.sequence[-1])


def _list_of(titles: Iterable[str]) -> Prompt:
    return Prompt(text=_lines(titles))


def _lines(titles: Iterable[str]) -> str:
    return "".join(f"{title}{_LINE_END}" for title in titles)


def _score(titles: Iterable[str]) -> Score:
    """Each as the list's next line. The list goes on behind it."""
    return Score(candidates=tuple(titles), ending=_LINE_END)


def _pieces(example: HistoryExample) -> list[list[str]]:
    """A history cut into pieces of what the model reads and one more; a piece begins with the last item of the one
    before. Where the first cut falls differs from user to user."""
    items = example.sequence
    first = random.Random(_digest("pieces", example)).randint(1, HISTORY_ITEMS)
    starts = [0, *range(first, len(items) - 1, HISTORY_ITEMS)]
    ends = [*(start + 1 for start in starts[1:]), len(items)]
    return [items[start:end] for start, end in zip(starts, ends, strict=True) if end - start > 1]


def _report(ranks: Sequence[Sequence[int | None]]) -> Report:
    """Mean over rows; a row with several equally likely ranks counts their mean."""
    metrics = {
        name: Metric(value=mean([mean([measure(rank) for rank in row]) for row in ranks]))
        for name, measure in RANKING_METRICS.items()
    }
    return Report(primary="ndcg@10", metrics=metrics, rows=len(ranks))


def _question(example: HistoryExample) -> tuple[list[str], str | None]:
    """The history and the item to predict: ``next``, or the last one where there is no ``next``."""
    items = example.sequence
    return (items[:-1], items[-1]) if len(items) > 1 else (items, None)


def _negatives(history: Sequence[str], following: str, state: Catalogue) -> list[str]:
    """Titles that the user never took, uniform over the catalogue, the same for the same example."""
    taken = {*history, following}
    pool = [title for title in state.counts if title not in taken]
    seed = hashlib.sha256("\n".join([*history, following]).encode()).digest()
    return random.Random(seed).sample(pool, min(NEGATIVES, len(pool)))


def _merged(examples: Sequence[HistoryExample]) -> list[HistoryExample]:
    """One example a user. Rows of the same user are joined in order; equal rows without a user are one."""
    merged: dict[str, HistoryExample] = {}
    for example in examples:
        key = f"user:{example.user}" if example.user is not None else "\n".join(["items:", *example.sequence])
        if key not in merged:
            merged[key] = example
        elif example.user is not None and example.sequence != merged[key].sequence:
            merged[key] = _joined(merged[key], example)
    return list(merged.values())


def _joined(first: HistoryExample, second: HistoryExample) -> HistoryExample:
    timed = first.timestamps is not None and second.timestamps is not None and first.next is None
    return HistoryExample(
        user=first.user,
        history=[*first.sequence, *second.history],
        timestamps=[*(first.timestamps or []), *(second.timestamps or [])] if timed else None,
        next=second.next,
    )


def _digest(salt: str, example: HistoryExample) -> bytes:
    text = "\n".join([salt, example.user or "", *example.sequence])
    return hashlib.sha256(text.encode()).digest()


@hookimpl
def register_tasks(register: Callable[[AnyTask], None]) -> None:
    register(RecommendationTask())
