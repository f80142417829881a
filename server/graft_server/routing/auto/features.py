"""A text as counts of hashed words, pairs of words, and characters within words.

Character n-grams tell languages apart and survive inflection and misspelling; words and pairs tell topics and prompts
apart. Hashing (Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", ICML 2009) needs no vocabulary,
so that a profile never has to be made again when another adapter is published.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Weights = NDArray[np.float32]

#: Features are numbered below this.
DIMENSIONS = 1 << 16
#: Words of a text that are looked at, so that a long text costs no more than a page.
_WORDS = 400
_SIZES = (3, 4, 5)
_WORD = re.compile(r"\w+")


def features(text: str) -> tuple[Indices, Weights]:
    """The features of a text in ascending order, and ``1 + ln(count)`` of each."""
    words = _WORD.findall(text.lower())[:_WORDS]
    grams = [f"w:{word}" for word in words]
    grams += [f"p:{first} {second}" for first, second in pairwise(words)]
    for word in words:
        padded = f" {word} "
        for size in _SIZES:
            grams += [padded[start : start + size] for start in range(len(padded) - size + 1)]
    counts = Counter(zlib.crc32(gram.encode()) % DIMENSIONS for gram in grams)
    indices = np.fromiter(counts.keys(), np.int64, len(counts))
    weights = 1 + np.log(np.fromiter(counts.values(), np.float32, len(counts)))
    order = np.argsort(indices)
    return indices[order], weights[order].astype(np.float32)
