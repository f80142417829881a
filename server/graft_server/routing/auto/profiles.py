"""What an adapter was trained and validated on, as one sparse vector and how common each feature is in it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from graft_server.routing.auto.features import DIMENSIONS, Indices, Weights, features

#: A profile that comes with a version and lies beside its weights.
PROFILE_FILE = "profile.safetensors"

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
        save_file({"indices": self.indices, "mean": self.mean, "share": self.share}, partial)
        os.replace(partial, file)

    @classmethod
    def load(cls, file: Path) -> Profile:
        """Raises:
        OSError: there is none.
        ValueError: it is damaged, or is no profile.
        """
        try:
            arrays = load_file(file)
            indices, mean, share = arrays["indices"], arrays["mean"], arrays["share"]
        except (SafetensorError, KeyError) as error:
            raise ValueError(f"{file.name} is no profile, or is damaged: {error}") from error
        # It may have come with an adapter from anywhere.
        alike = indices.shape == mean.shape == share.shape == (indices.size,) and 0 < indices.size <= _MOST_FEATURES
        kinds = (indices.dtype, mean.dtype, share.dtype) == (np.int64, np.float32, np.float32)
        # Comparisons with what is no number do not hold.
        if not (alike and kinds and all(((part >= 0) & (part <= 1)).all() for part in (mean, share))):
            raise ValueError(f"{file.name} is no profile")
        if indices[0] < 0 or indices[-1] >= DIMENSIONS or (np.diff(indices) <= 0).any():
            raise ValueError(f"{file.name} is no profile: its features are not in order")
        return cls(indices, mean, share)


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
