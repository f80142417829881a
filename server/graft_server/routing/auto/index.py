"""All profiles as one inverted index: a request's similarity to each adapter, at a cost that hardly grows with them.

Features that all adapters share (the words of a prompt template, say) weigh little: inverse document frequency (Spärck
Jones 1972) over adapters, each counting the same however many texts it has. Similarity is the cosine times the share of
the request that the adapter has seen at all, so that a few common words of an unrelated text make nobody sure; from 0
to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graft_server.routing.auto.features import DIMENSIONS, features
from graft_server.routing.auto.profiles import Profile

#: Keeps a feature that no adapter knows from weighing infinitely much.
_FLOOR = 1e-3


@dataclass(frozen=True, slots=True)
class Match:
    """An adapter and how similar the request is to what it was trained on, from 0 to 1."""

    name: str
    confidence: float


class ProfileIndex:
    """Profiles by adapter name. Immutable, so threads share it; a new one is made when an adapter is published."""

    def __init__(self, profiles: Mapping[str, Profile]) -> None:
        self.names = tuple(profiles)
        count = max(1, len(profiles))
        common = np.zeros(DIMENSIONS)
        for profile in profiles.values():
            common[profile.indices] += profile.share
        self._idf = np.maximum(-np.log(common / count + _FLOOR), 0).astype(np.float32)
        # The postings of a feature: which adapters have it, and with which weight in their unit vectors.
        owners, places, weights = [], [], []
        for number, profile in enumerate(profiles.values()):
            weighted = profile.mean * self._idf[profile.indices]
            owners.append(np.full(len(weighted), number, np.int32))
            places.append(profile.indices)
            weights.append(weighted / (np.linalg.norm(weighted) or 1.0))
        all_places = np.concatenate(places) if places else np.zeros(0, np.int64)
        order = np.argsort(all_places, kind="stable")
        self._owners = np.concatenate(owners)[order] if owners else np.zeros(0, np.int32)
        self._weights = np.concatenate(weights)[order].astype(np.float32) if weights else np.zeros(0, np.float32)
        self._starts = np.searchsorted(all_places[order], np.arange(DIMENSIONS + 1))

    def match(self, text: str, limit: int = 8) -> list[Match]:
        """The adapters most similar to a text, the best first."""
        indices, values = features(text)
        values = values * self._idf[indices]
        norm = float(np.linalg.norm(values))
        if not norm or not self.names:
            return []
        starts, ends = self._starts[indices], self._starts[indices + 1]
        lengths = ends - starts
        # Positions of all postings of all features, without a loop over features.
        offsets = np.repeat(starts - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
        postings = offsets + np.arange(lengths.sum())
        owners, unit = self._owners[postings], np.repeat(values / norm, lengths)
        cosines = np.bincount(owners, weights=self._weights[postings] * unit, minlength=len(self.names))
        scores = cosines * np.bincount(owners, weights=unit**2, minlength=len(self.names))
        best = np.argsort(-scores, kind="stable")[:limit]
        return [Match(self.names[number], float(scores[number])) for number in best if scores[number] > 0]
