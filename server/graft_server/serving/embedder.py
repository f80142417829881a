"""Texts as vectors of the base model: through the gate like any request for it, for as long as the request's time and
its caller's key allow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

from graft_server.access.principal import current_lease
from graft_server.admission.deadlines import DeadlineError, before
from graft_server.admission.gate import FullError
from graft_server.admission.turnstile import Turnstile
from graft_server.engine.base import Embeddings, Engine
from graft_server.metrics.by_adapter import Served
from graft_server.observability import Metrics
from graft_server.observers import Observers
from graft_server.problems import ProblemError, as_problem
from graft_server.quotas.meter import Charge, Meter
from graft_server.serving.account import account
from graft_server.serving.cost import text_tokens
from graft_server.serving.predictor import Terms


class Embedder:
    """Embeds texts with the engine."""

    def __init__(
        self, engine: Engine, turnstile: Turnstile, metrics: Metrics, observers: Observers, meter: Meter
    ) -> None:
        self._engine = engine
        self._turnstile = turnstile
        self._metrics = metrics
        self._observers = observers
        self._meter = meter

    async def embed(self, texts: Sequence[str], terms: Terms) -> Embeddings:
        """A vector for each text; cancelling it ends the work in the engine. It is counted and told to plugins as a
        request for the base model, of the task ``embeddings``.

        Raises:
            FullError: too many requests wait already.
            ProblemError: ``deadline-exceeded``, ``unauthorized`` because the caller's key has ended, or
                ``rate-limited``.
            EngineError: a text does not fit the context, or the engine does not run.
        """
        started = time.monotonic()
        code, queued, tokens = "aborted", None, 0
        lease = current_lease.get()
        cost = text_tokens(texts)
        turn = self._turnstile.enter(None, cost, background=terms.background, deadline=terms.deadline)
        try:
            with nullcontext() if lease is None else lease.held():
                metered = self._meter.charged(None, [Charge(cost, 0)], patience=terms.patience)
                async with metered as (charge,), terms.turn, turn as visit:
                    queued = visit.waited
                    charge.record(cost, 0)
                    embedded = await before(terms.deadline, self._engine.embed(texts))
                    charge.record(embedded.prompt_tokens, 0)
            code, tokens = "ok", embedded.prompt_tokens
            return embedded
        except DeadlineError as error:
            code = "deadline-exceeded"
            over = f"the request's {terms.timeout:g} s were over before all texts were embedded"
            raise ProblemError(code, f"{over}; give it more time, or send fewer") from error
        except Exception as error:
            if isinstance(error, FullError):
                self._metrics.rejected.inc()
            problem = as_problem(error)
            code = problem.code if problem is not None else "internal"
            raise
        finally:
            seconds = time.monotonic() - started
            total = seconds if code == "ok" else None
            served = Served(None, code, prompt_tokens=tokens, queued=queued, total=total)
            account(self._metrics, self._observers, served, ref="base", task="embeddings", seconds=seconds)
