"""What an adapter was trained and validated on, as one sparse vector and how common each feature is in it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from graft_server.routing.auto.features import DIMENSIONS, Indices, Weights, features

#: Texts that a profile is made of at most, and features that it keeps: the most common ones.
MOST_TEXTS = 1000
_MOST_FEATURES = 8192


@dataclass(frozen=True, slots=True)
class Profile:
    """``indices`` ascending; ``mean`` is the mean of the texts' unit vectors, ``share`` the share of texts with the
    feature."""

    indices: Indices
    mean: Weights
    share: Weights

    def save(self, file: Path) -> None:
        """Write the profile; a process that is killed meanwhile leaves no half of one."""
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
        with partial.open("wb") as stream:
            np.savez(stream, indices=self.indices, mean=self.mean, share=self.share)
        os.replace(partial, file)

    @classmethod
    def load(cls, file: Path) -> Profile:
        """Raises:
        OSError: there is none.
        ValueError: it is damaged.
        """
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["indices"], arrays["mean"], arrays["share"])
        except (BadZipFile, EOFError, KeyError) as error:
            raise ValueError(f"{file} is damaged: {error}") from error


def profile_of(texts: Iterable[str]) -> Profile | None:
    """The profile of some texts, or ``None`` where they have no words."""
    total = np.zeros(DIMENSIONS, np.float32)
    seen = np.zeros(DIMENSIONS, np.float32)
    count = 0
    for text in texts:
        indices, weights = features(text)
        if len(indices):
            total[indices] += weights / np.linalg.norm(weights)
            seen[indices] += 1
            count += 1
    if not count:
        return None
    kept = np.argsort(-total, kind="stable")[:_MOST_FEATURES]
    kept = np.sort(kept[total[kept] > 0])
    return Profile(kept, (total[kept] / count).astype(np.float32), (seen[kept] / count).astype(np.float32))
