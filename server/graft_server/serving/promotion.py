"""One promotion: whether the version can be served, whether it is good enough, and the move of the alias."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from graft_client.schemas.adapters import EvaluationSummary
from graft_client.schemas.lifecycle import GateReport
from graft_plugins.errors import UnknownNameError
from graft_plugins.manager import PluginHost
from graft_server.engine.base import AdapterLoadError, Engine
from graft_server.problems import ProblemError
from graft_server.registry import CorruptArtefactError, Registry
from graft_server.registry.reading import hold
from graft_server.registry.records import AliasEventRecord, AliasRecord, VersionRecord
from graft_server.serving.convert import version_source


@dataclass(frozen=True, slots=True)
class Promotion:
    """Lets ``alias`` stand for ``version``, unless it was moved after ``seen``."""

    registry: Registry
    engine: Engine
    host: PluginHost
    alias: str
    version: VersionRecord
    seen: AliasRecord | None
    who: str
    why: str

    @property
    def against(self) -> str:
        """What the version is measured beside."""
        return self.seen.version.ref if self.seen else "base"

    async def check(self) -> None:
        """Whether the version can be served here and now.

        Raises:
            ProblemError: ``unservable``, with the reason.
        """
        lineage = self.version.lineage
        if lineage.base_fingerprint != self.engine.model.fingerprint:
            raise self._unservable(f"it was trained on {lineage.base_model}, this server runs {self.engine.model.name}")
        try:
            self.host.task(lineage.task)
            await asyncio.to_thread(self.registry.verify, self.version)
            with await hold(self.registry, self.version):
                await self.engine.validate(version_source(self.version))
        except UnknownNameError:
            raise self._unservable(f"no loaded plugin provides its task {lineage.task!r}") from None
        except (CorruptArtefactError, AdapterLoadError) as error:
            raise self._unservable(str(error)) from error

    async def carry_out(self, gate: GateReport | None = None) -> AliasEventRecord:
        """Move the alias.

        Raises:
            UnknownError: the version was deleted.
            ConflictError: the alias was moved after ``seen``, or stands for the version already.
        """
        return await asyncio.to_thread(
            self.registry.aliases.promote,
            self.version.adapter,
            self.alias,
            self.version.version,
            seen=self.seen,
            who=self.who,
            why=self.why,
            gate=gate,
        )

    async def pass_gate(self, summary: EvaluationSummary, dataset: str, min_delta: float) -> AliasEventRecord:
        """Move the alias if the version is better by ``min_delta`` than what is in place, else note the refusal.

        Raises:
            ProblemError: ``gate-refused``, with both figures.
            UnknownError: the version was deleted.
            ConflictError: the alias was moved while the versions were measured.
        """
        report = self._report(summary, dataset, min_delta)
        if report.passed:
            return await self.carry_out(report)
        detail = (
            f"{self.version.ref} has {report.metric} {report.score:.4g} and {report.against} "
            f"{report.score_in_place:.4g} on {report.rows} rows: a difference of {report.delta:+.4g} where at least "
            f"{min_delta:+.4g} was asked for; nothing was changed"
        )
        await asyncio.to_thread(
            self.registry.aliases.refuse,
            self.version.adapter,
            self.alias,
            self.version.version,
            seen=self.seen,
            who=self.who,
            why=self.why,
            gate=report,
        )
        raise ProblemError("gate-refused", detail)

    def _report(self, summary: EvaluationSummary, dataset: str, min_delta: float) -> GateReport:
        if summary.base is None:
            raise RuntimeError("a gate was measured without what is in place")
        metric = summary.adapter.primary
        return GateReport(
            dataset=dataset,
            rows=summary.adapter.rows,
            metric=metric,
            higher_is_better=summary.adapter.metrics[metric].higher_is_better,
            against=self.against,
            score=summary.adapter.score,
            score_in_place=summary.base.metrics[metric].value,
            min_delta=min_delta,
        )

    def _unservable(self, reason: str) -> ProblemError:
        return ProblemError("unservable", f"{self.version.ref} can't be served, so it was not promoted: {reason}")
