"""Texts as vectors of the base model: through the gate like any request for it, for as long as the request's time and
its caller's key allow."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from graft_server.access.principal import current_lease
from graft_server.admission.deadlines import DeadlineError, before
from graft_server.admission.gate import FullError
from graft_server.admission.turnstile import Turnstile
from graft_server.engine.base import Embeddings, Engine
from graft_server.observability import Metrics
from graft_server.problems import ProblemError
from graft_server.quotas.meter import Charge, Meter
from graft_server.serving.cost import text_tokens
from graft_server.serving.predictor import Terms


class Embedder:
    """Embeds texts with the engine."""

    def __init__(self, engine: Engine, turnstile: Turnstile, metrics: Metrics, meter: Meter) -> None:
        self._engine = engine
        self._turnstile = turnstile
        self._metrics = metrics
        self._meter = meter

    async def embed(self, texts: Sequence[str], terms: Terms) -> Embeddings:
        """A vector for each text; cancelling it ends the work in the engine.

        Raises:
            FullError: too many requests wait already.
            ProblemError: ``deadline-exceeded``, ``unauthorized`` because the caller's key has ended, or
                ``rate-limited``.
            EngineError: a text does not fit the context, or the engine does not run.
        """
        lease = current_lease.get()
        cost = text_tokens(texts)
        turn = self._turnstile.enter(None, cost, background=terms.background, deadline=terms.deadline)
        try:
            with nullcontext() if lease is None else lease.held():
                async with self._meter.charged(None, [Charge(cost, 0)], patience=terms.patience) as (charge,), turn:
                    charge.record(cost, 0)
                    embedded = await before(terms.deadline, self._engine.embed(texts))
                    charge.record(embedded.prompt_tokens, 0)
                    return embedded
        except FullError:
            self._metrics.rejected.inc()
            raise
        except DeadlineError as error:
            over = f"the request's {terms.timeout:g} s were over before all texts were embedded"
            raise ProblemError("deadline-exceeded", f"{over}; give it more time, or send fewer") from error
