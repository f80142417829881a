"""Which target of a route a request goes to: by weight, and for one key always the same.

Weighted rendezvous hashing (Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", SPAA 2005): each target
draws a number from the key, scaled by its weight, and the highest wins. When weights change, only as many keys move as
the change makes necessary, and no state is kept.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from graft_client.schemas.routes import RouteTarget


def pick(route: str, targets: Sequence[RouteTarget], key: str) -> RouteTarget:
    """The target that ``key`` belongs to; those without weight get nothing."""
    return max(targets, key=lambda target: _score(f"{route}\0{key}\0{target.ref}", target.weight))


def _score(text: str, weight: float) -> float:
    if weight == 0:
        return -math.inf
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    # Strictly between 0 and 1.
    uniform = (int.from_bytes(digest) + 0.5) / 2**64
    return -weight / math.log(uniform) if uniform < 1 else math.inf
