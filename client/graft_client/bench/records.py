"""What was measured of each request, and the field's names for the times between."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no whole answer.

    ``kind`` is the HTTP status where it is not 200 (``429``, ``503``), else ``connect`` (no connection came about),
    ``timeout`` (silence for too long), ``broken`` (the connection or the stream ended early), ``stream`` (an error
    told within the stream), or ``protocol`` (the answer can't be understood).
    """

    kind: str
    message: str


@dataclass(slots=True)
class Record:
    """One request and its times, in seconds since the run began.

    ``due`` is when it was to be sent: in an open loop its arrival, whether or not this client was in time, so that
    a server that holds the client up does not look fast for it ("coordinated omission", Tene 2013). ``chunks`` are
    the moments at which text came. ``counted`` says that the token numbers are the server's own; without, they are
    the prompt's words and the answer's chunks.
    """

    model: str
    due: float
    ended: float = 0.0
    chunks: array[float] = field(default_factory=lambda: array("d"))
    prompt_tokens: int = 0
    output_tokens: int = 0
    counted: bool = True
    failure: Failure | None = None

    @property
    def latency(self) -> float:
        """End-to-end latency: from the moment the request was due to the end of its answer."""
        return self.ended - self.due

    @property
    def ttft(self) -> float:
        """Time to first token: until the first text came; for an answer without text, until its end."""
        return (self.chunks[0] if self.chunks else self.ended) - self.due

    @property
    def tpot(self) -> float | None:
        """Time per output token: ``(latency - TTFT) / (output tokens - 1)``; None for an answer of one token."""
        if self.output_tokens < 2:
            return None
        return (self.latency - self.ttft) / (self.output_tokens - 1)

    @property
    def gaps(self) -> list[float]:
        """Inter-token latencies: the time from each piece of text to the next. A server may send several tokens in
        one piece, and then there are fewer and longer gaps than tokens."""
        return [after - before for before, after in pairwise(self.chunks)]


@dataclass
class Measurements:
    """What a run has measured so far. It grows while the run goes on, so that a run that is interrupted has it too.

    ``seconds`` is the run's length: until its last answer, or until it was interrupted. ``lags`` are how many
    seconds this process was late to do what it had planned, sampled ten times a second.
    """

    records: list[Record] = field(default_factory=list)
    sent: int = 0
    chunks: int = 0
    seconds: float = 0.0
    lags: array[float] = field(default_factory=lambda: array("d"))

    @property
    def answered(self) -> list[Record]:
        """The requests whose answers came whole."""
        return [record for record in self.records if record.failure is None]
