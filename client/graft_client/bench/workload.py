"""The requests of a run: which model, which prompt, how long an answer. The same seed gives the same requests."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from graft_client.bench.popularity import Popularity, shares

_LENGTH = re.compile(r"(\d+)(?:-(\d+))?")

#: Common enough to be one token each, with the space before it, in the vocabularies of most models.
_TEXT = """
the and for that with this from have not are was but they his her you one all can had what when who will more if out
said about up them some could time into has two like then now only its over new also any people first well way even
back good how our work life day man world year still long little own right old great high small large next early
young few public bad same able house water city place school state night point home room mother area money story
fact month lot study book eye job word business side kind head service friend father power hour game line end member
law car name team minute idea body face level office door health person art war history party result change morning
reason research moment air teacher force order paper music food river road table garden light summer winter window
letter market land sea stone tree
"""
_WORDS = _TEXT.split()


@dataclass(frozen=True)
class Length:
    """A number of tokens, or a range of which each request draws one uniformly, both ends included."""

    least: int
    most: int

    @classmethod
    def parse(cls, text: str) -> Length:
        """``128`` or ``32-256``.

        Raises:
            ValueError: it is neither, it is zero, or the range runs backwards.
        """
        match = _LENGTH.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"`{text}` is neither a number such as 128 nor a range such as 32-256")
        least = int(match[1])
        most = int(match[2]) if match[2] else least
        if not 1 <= least <= most:
            raise ValueError(f"`{text}` must be at least 1 and run upwards")
        return cls(least, most)

    def draw(self, random: Random) -> int:
        return random.randint(self.least, self.most)


@dataclass(frozen=True, slots=True)
class Planned:
    """A request to send. ``prompt`` has ``words`` words, about as many tokens; the answer is to have
    ``output_tokens``."""

    model: str
    prompt: str
    words: int
    output_tokens: int


def workload(
    models: Sequence[str],
    *,
    popularity: Popularity,
    exponent: float,
    prompt_tokens: Length,
    output_tokens: Length,
    seed: int,
) -> Iterator[Planned]:
    """Requests without end. Popularity follows the order of ``models``.

    Prompts are drawn word by word, so that they share no beginning that a server could have computed before. Each
    property is drawn by a generator of its own: changing the lengths leaves the order of the models as it was.
    """
    cumulative = list(accumulate(shares(popularity, len(models), exponent)))
    names, lengths, answers, words = (
        Random(f"{seed} {use}") for use in ("models", "prompt tokens", "output tokens", "words")
    )
    while True:
        count = prompt_tokens.draw(lengths)
        yield Planned(
            model=names.choices(models, cum_weights=cumulative)[0],
            prompt=" ".join(words.choices(_WORDS, k=count)),
            words=count,
            output_tokens=output_tokens.draw(answers),
        )
