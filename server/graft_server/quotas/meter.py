"""The ledger of a running server: knows the limits, counts each model request, and says so in headers.

Each server counts for itself and in memory, without asking anybody: of several servers of one registry each enforces
its equal share of every limit. A server that was started anew begins with full buckets, of its share.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import Counter

from graft_client.schemas.limits import UNSET, Limits
from graft_server.problems import ProblemError
from graft_server.quotas.account import Account, current_account
from graft_server.quotas.ledger import Claim, Holding, Ledger, LimitError, Owner

log = logging.getLogger(__name__)

#: Seconds for which the limits of adapters are not looked up again.
_FRESH = 0.5
#: Seconds between two looks for room at most.
_LOOK = 0.25


@dataclass(slots=True, eq=False)
class Charge:
    """What one answer costs: its prompt, unless another answer pays for the same one, and the longest that it can
    become, in tokens."""

    prompt: int
    answer: int
    pays_prompt: bool = True
    entered: bool = False
    used: int = 0

    @property
    def reserved(self) -> int:
        return self.answer + (self.prompt if self.pays_prompt else 0)

    def record(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The request was in the engine, which has counted these; not yet the prompt, perhaps, where it broke off."""
        self.entered = True
        self.used = completion_tokens + ((prompt_tokens or self.prompt) if self.pays_prompt else 0)


class Meter:
    """See the module. ``adapter_limits`` reads those that adapters have of their own, by name; blocking."""

    def __init__(
        self,
        adapter_limits: Callable[[], Mapping[str, Limits]],
        *,
        key_defaults: Limits,
        adapter_defaults: Limits,
        refused: Counter,
    ) -> None:
        self._read = adapter_limits
        self._key_defaults = key_defaults
        self._adapter_defaults = adapter_defaults
        self._refused = refused
        self._ledger = Ledger()
        self._servers = 1
        self._limits: Mapping[str, Limits] = {}
        self._until = float("-inf")
        self._reading = asyncio.Lock()

    def changed(self) -> None:
        """Limits of an adapter were changed here: look again at once."""
        self._until = float("-inf")

    def share_among(self, servers: int) -> None:
        """So many servers enforce the limits, this one included."""
        self._servers = servers
        self._ledger.share_out(1 / servers, time.monotonic())

    @asynccontextmanager
    async def charged(
        self, adapter: str | None, charges: Sequence[Charge], *, patience: float = 0.0
    ) -> AsyncIterator[Sequence[Charge]]:
        """Count one request with these answers by ``adapter`` (``None`` is the base model), all of them or none. At the
        end it counts what the charges have recorded, and as no request where none of them entered the engine.
        ``patience`` is in seconds: where a limit lets it in sooner it waits, behind others of the same HTTP request.

        Raises:
            ProblemError: ``rate-limited``, or ``beyond-limit`` where waiting does not help.
        """
        account = current_account.get()
        if account is None:
            yield charges
            return
        claims = [self._own(account)]
        if adapter is not None:
            account.adapters[adapter] = limits = await self._limits_of(adapter)
            claims.append(Claim(Owner("adapter", adapter), limits))
        tokens = sum(charge.reserved for charge in charges)
        try:
            if patience:
                holding = await self._reserve_within(patience, account, claims, tokens)
            else:
                holding = self._reserve(claims, tokens)
        except LimitError as error:
            self._refused.labels(error.owner.kind, error.rate.figure).inc()
            raise _problem(account, error, self._servers) from error
        try:
            yield charges
        finally:
            entered = any(charge.entered for charge in charges)
            holding.settle(requests=int(entered), tokens=sum(charge.used for charge in charges))

    def _reserve(self, claims: Sequence[Claim], tokens: int) -> Holding:
        return self._ledger.reserve(claims, requests=1, tokens=tokens, now=time.monotonic())

    async def _reserve_within(self, patience: float, account: Account, claims: Sequence[Claim], tokens: int) -> Holding:
        async with account.turn:
            while True:
                try:
                    return self._reserve(claims, tokens)
                except LimitError as error:
                    if error.retry_after is None or error.retry_after > patience:
                        raise
                    # What is in flight may settle for less and make room at any time.
                    await asyncio.sleep(min(error.retry_after, _LOOK))

    def headers(self, account: Account) -> dict[str, str]:
        """Where the account and the adapters that it has asked stand: of several limits the one with least left."""
        now = time.monotonic()
        asked = (Claim(Owner("adapter", name), limits) for name, limits in account.adapters.items())
        buckets = [found for claim in (self._own(account), *asked) for found in self._ledger.buckets(claim, now)]
        headers = {}
        for figure in ("requests", "tokens"):
            own = [bucket for rate, bucket in buckets if rate.figure == figure]
            if own:
                tightest = min(own, key=lambda bucket: (bucket.remaining(now), bucket.limit))
                headers[f"x-ratelimit-limit-{figure}"] = str(tightest.capacity)
                headers[f"x-ratelimit-remaining-{figure}"] = str(tightest.remaining(now))
                headers[f"x-ratelimit-reset-{figure}"] = duration(tightest.reset(now))
        return headers

    def _own(self, account: Account) -> Claim:
        return Claim(account.owner, account.limits.or_else(self._key_defaults))

    async def _limits_of(self, adapter: str) -> Limits:
        async with self._reading:  # whoever comes meanwhile gets what is read, not what was known before
            if time.monotonic() > self._until:
                self._until = time.monotonic() + _FRESH
                try:
                    self._limits = await asyncio.to_thread(self._read)
                except Exception:
                    # A request that is on its way is not lost because the database is away.
                    log.exception("the limits of adapters can't be read; those of before hold")
        return self._limits.get(adapter, UNSET).or_else(self._adapter_defaults)


def duration(seconds: float) -> str:
    """As OpenAI's service writes it: ``120ms``, ``1.5s``, ``6m0s``, ``23h59m12s``."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (f"{hours}h" if hours else "") + f"{minutes}m{rest}s"


def _problem(account: Account, error: LimitError, servers: int) -> ProblemError:
    rate = error.rate
    who = account.title if error.owner == account.owner else f"adapter {error.owner.name!r}"
    limit = f"{who} has {error.limit} {rate.figure} a {rate.period_name}"
    asks = f", and this request asks for up to {error.wanted}" if rate.figure == "tokens" else ""
    if error.retry_after is None:
        return ProblemError("beyond-limit", f"{limit}{asks}; ask for fewer with `max_tokens`, or send a shorter prompt")
    if servers > 1:
        limit = f"{limit}, in equal shares at {servers} servers"
    wait = f"{math.ceil(error.retry_after)} s"
    return ProblemError("rate-limited", f"{limit}{asks}; try again in {wait}", retry_after=error.retry_after)
