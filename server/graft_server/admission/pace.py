"""How fast the engine is, learned from the requests that leave it: no engine has to be described.

A step of decoding takes ``a + b * rows`` seconds: reading the weights, and computing a row for each sequence. The
ratio ``a / b`` is the *knee*: with so many rows a step takes twice as long as with hardly any. It is some sixteen for
a small model on two CPU cores and some hundreds on a GPU, so it is fitted to what was seen.
"""

from __future__ import annotations

from collections.abc import Sequence

#: The knee at the beginning, the sizes for which it is taken as seen, and what each of them counts beside a real one.
_FIRST_KNEE = 16.0
_EXPECTED_SIZES = (1.0, 64.0)
_EXPECTED_WEIGHT = 0.25
_LARGEST_KNEE = 1024.0
#: Samples of one batch size before it counts, and how fast its mean follows new ones.
_ENOUGH, _SMOOTHING = 8, 0.1
#: Seconds of work after which a second of it weighs half in the rate.
_HALF_LIFE = 30.0


class Pace:
    """Running means over batch sizes, by powers of two, and the rate at which tokens leave the engine."""

    def __init__(self) -> None:
        #: Size class -> samples, mean rows, mean seconds a token. Sizes that occur no more are kept: without them
        #: there would be no line to fit.
        self._sizes: dict[int, tuple[int, float, float]] = {}
        self._knee = _FIRST_KNEE
        self._tokens = 0.0
        self._busy = 0.0
        self._at = 0.0
        #: Integral of the requests in flight over time.
        self.row_seconds = 0.0

    @property
    def knee(self) -> float:
        """Rows that make a step take twice as long as a step of few rows."""
        return self._knee

    @property
    def rate(self) -> float | None:
        """Tokens, as tickets cost them, that the engine gets done in a second of work; ``None`` at the beginning."""
        return self._tokens / self._busy if self._tokens and self._busy else None

    def pass_time(self, now: float, running: int) -> None:
        """``running`` requests have been in flight since the last call."""
        seconds = max(0.0, now - self._at)
        self._at = now
        if running:
            decay = 0.5 ** (seconds / _HALF_LIFE)
            self._tokens *= decay
            self._busy = self._busy * decay + seconds
            self.row_seconds += running * seconds

    def served(self, cost: int) -> None:
        """A request has left the engine."""
        self._tokens += cost

    def decoded(self, rows: float, token_seconds: float) -> None:
        """A request got a token each ``token_seconds``, among ``rows`` on average."""
        size = round(rows).bit_length()
        samples, mean_rows, mean_seconds = self._sizes.get(size, (0, rows, token_seconds))
        weight = max(_SMOOTHING, 1 / (samples + 1))
        self._sizes[size] = (
            samples + 1,
            mean_rows + weight * (rows - mean_rows),
            mean_seconds + weight * (token_seconds - mean_seconds),
        )
        self._knee = self._fit()

    def _fit(self) -> float:
        """Least squares over the sizes, in relative error, so that small batches count as much as large ones.

        Two more points stand for what was expected, at the speed that was seen: sizes that lie close together say
        little about a slope, and one that came about by chance would open the gate wide.
        """
        points = [(rows, seconds, 1.0) for samples, rows, seconds in self._sizes.values() if samples >= _ENOUGH]
        if not points:
            return _FIRST_KNEE
        middle = sum(rows for rows, _, _ in points) / len(points)
        unit = sum(seconds for _, seconds, _ in points) / len(points) / (_FIRST_KNEE + middle)
        points += [(rows, unit * (_FIRST_KNEE + rows), _EXPECTED_WEIGHT) for rows in _EXPECTED_SIZES]
        slope, at_zero = _line(points)
        return min(_LARGEST_KNEE, max(1.0, at_zero / slope)) if slope > 0 else _LARGEST_KNEE


def _line(points: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Slope and value at 0 of the line with the least squared relative errors through points ``(x, y, weight)``."""
    weighted = [(weight / y**2, x, y) for x, y, weight in points]
    total = sum(w for w, _, _ in weighted)
    mean_x = sum(w * x for w, x, _ in weighted) / total
    mean_y = sum(w * y for w, _, y in weighted) / total
    slope = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in weighted)
    slope /= sum(w * (x - mean_x) ** 2 for w, x, _ in weighted)
    return slope, mean_y - slope * mean_x
