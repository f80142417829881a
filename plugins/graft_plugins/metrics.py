"""Metrics that several tasks share: SQuAD's exact match and F1, corpus chrF, and ranking metrics."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from graft_plugins.task import Metric

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_normalise(text: str) -> str:
    """Lower-case, without punctuation, articles and extra whitespace, as in the official SQuAD v1.1 script
    (Rajpurkar et al. 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the answer equals one of the references after ``squad_normalise``, else 0."""
    return float(any(squad_normalise(answer) == squad_normalise(reference) for reference in references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """The best F1 over shared tokens among the references, after ``squad_normalise`` (Rajpurkar et al. 2016).

    Two texts without any token agree, as in the SQuAD v2.0 script.
    """
    return max(_token_f1(answer, reference) for reference in references)


def _token_f1(answer: str, reference: str) -> float:
    found, wanted = squad_normalise(answer).split(), squad_normalise(reference).split()
    if not found or not wanted:
        return float(found == wanted)
    shared = sum((Counter(found) & Counter(wanted)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(found), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def mean(values: Sequence[float]) -> float:
    """The mean of one value a row.

    Raises:
        ValueError: there are no rows.
    """
    if not values:
        raise ValueError("there are no rows to measure")
    return sum(values) / len(values)


def chrf(answers: Sequence[str], references: Sequence[Sequence[str]]) -> Metric:
    """Corpus chrF, 0 to 100 (Popovic 2015), by sacrebleu; a row may have several references."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    score = metric.corpus_score(list(answers), _reference_streams(answers, references))
    return Metric(value=score.score, signature=str(metric.get_signature()))


def bleu(answers: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str = "13a") -> Metric:
    """Corpus BLEU, 0 to 100 (Papineni et al. 2002), by sacrebleu (Post 2018) with one of its tokenizers."""
    from sacrebleu.metrics import BLEU

    metric = BLEU(tokenize=tokenize)
    score = metric.corpus_score(list(answers), _reference_streams(answers, references))
    return Metric(value=score.score, signature=str(metric.get_signature()))


def _reference_streams(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[Sequence[str | None]]:
    """sacrebleu wants one list a reference *number*, with ``None`` where a row has fewer."""
    if not answers:
        raise ValueError("there are no rows to measure")
    most = max(len(row) for row in references)
    return [[row[index] if index < len(row) else None for row in references] for index in range(most)]


def hit(rank: int | None, k: int) -> float:
    """1 if the one relevant item is among the first ``k``; ``rank`` counts from 1, ``None`` is not ranked."""
    return float(rank is not None and rank <= k)


def ndcg(rank: int | None, k: int) -> float:
    """NDCG@k with one relevant item: ``1 / log2(rank + 1)`` (Järvelin & Kekäläinen 2002)."""
    return 1.0 / math.log2(rank + 1) if rank is not None and rank <= k else 0.0


def reciprocal_rank(rank: int | None) -> float:
    """``1 / rank``, and 0 where the item is not ranked."""
    return 1.0 / rank if rank is not None else 0.0


#: The ranking metrics every recommendation report holds, from a rank to a value.
RANKING_METRICS: dict[str, Callable[[int | None], float]] = {
    "hit@1": lambda rank: hit(rank, 1),
    "hit@10": lambda rank: hit(rank, 10),
    "ndcg@10": lambda rank: ndcg(rank, 10),
    "mrr": reciprocal_rank,
}
