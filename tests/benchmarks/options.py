"""The command line that the benchmarks of the server share, and the order in which they measure."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence


def parser(doc: str | None) -> argparse.ArgumentParser:
    """``--base-model`` and ``--pairs``; a benchmark adds its sizes."""
    own = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    own.add_argument("--base-model", required=True, help="as for graft serve")
    own.add_argument("--pairs", type=int, default=5, help="how often each side is measured")
    return own


def turns(pairs: int, sides: Sequence[str]) -> Iterator[tuple[int, str]]:
    """The number of a pair and the side to measure next.

    Who goes first alternates, so that a machine that grows slower is unfair to neither.
    """
    for pair in range(pairs):
        for side in sides if pair % 2 == 0 else reversed(sides):
            yield pair, side


class Samples(defaultdict[str, list[float]]):
    """What was measured of each side, told as it comes."""

    def __init__(self) -> None:
        super().__init__(list)

    def add(self, side: str, value: float, unit: str) -> None:
        self[side].append(value)
        print(f"pair {len(self[side])}: {side} {value:.4g} {unit}", flush=True)
