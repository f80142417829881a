"""``auto``: routers of plugins first, then the similarity of the request to what each adapter was trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from graft_client.schemas.predict import AutoChoice
from graft_plugins.errors import UnknownNameError
from graft_plugins.manager import PluginHost
from graft_plugins.router import RouteCandidate
from graft_server.problems import ProblemError
from graft_server.registry import Registry, UnknownError
from graft_server.registry.records import VersionRecord
from graft_server.routing.auto.catalogue import ProfileCatalogue

log = logging.getLogger(__name__)

#: What answers of a chosen adapter where it stands for a version; else the latest one does.
ALIAS = "production"
#: Where the runner-up has this share of the best one's similarity, it is asked which is meant, if asking is configured.
_TIE = 0.95


@dataclass(frozen=True, slots=True)
class Chosen:
    """``version`` is ``None`` where no adapter fits well enough."""

    version: VersionRecord | None
    note: str
    choice: AutoChoice | None = None


class AutoRouter:
    """Chooses by the text alone. Blocking: called in a thread."""

    def __init__(
        self,
        registry: Registry,
        host: PluginHost,
        catalogue: ProfileCatalogue,
        *,
        threshold: float,
        below: Literal["base", "ask"],
    ) -> None:
        self._registry = registry
        self._host = host
        self._catalogue = catalogue
        self._threshold = threshold
        self._below = below

    def choose(self, text: str, task: str | None, say: Callable[[str], None]) -> Chosen:
        """Raises:
        ProblemError: ``undecided``, where no adapter or more than one fits and asking is configured.
        """
        chosen = self._by_plugins(text, task, say) or self._by_profiles(text, task, say)
        say(chosen.note)
        return chosen

    def _by_plugins(self, text: str, task: str | None, say: Callable[[str], None]) -> Chosen | None:
        if not self._host.routers:
            return None
        adapters = {record.name: record for record in self._registry.adapters(task)}
        candidates = [
            RouteCandidate(name=record.name, task=record.task, description=self._describe(record.task))
            for record in adapters.values()
        ]
        for router in self._host.routers.values() if candidates else ():
            try:
                choice = router.choose(text, candidates)
                if choice is None:
                    say(f"router {router.name} leaves it to others")
                    continue
                version = self._version(adapters[choice.name].name)
            # A router is foreign code: whatever it does, the request still gets an answer.
            except Exception:
                log.exception("router %s failed; the next one is asked", router.name)
                say(f"router {router.name} failed")
                continue
            note = f"router {router.name} chose {version.ref} with confidence {choice.confidence:.2f}"
            return Chosen(version, note, AutoChoice(adapter=version.ref, confidence=choice.confidence))
        return None

    def _by_profiles(self, text: str, task: str | None, say: Callable[[str], None]) -> Chosen:
        found = []
        for match in self._catalogue.match(text, task):
            try:
                found.append((self._version(match.name), match.confidence))
            except UnknownError:
                continue  # deleted since its profile was made
            if len(found) == 2:
                break
        if not found:
            return self._undecided("no adapter was trained on anything like it", None)
        for version, confidence in found:
            say(f"the text is {confidence:.3f} similar to what {version.ref} was trained on")
        (best, confidence), second = found[0], found[1] if len(found) > 1 else None
        choice = AutoChoice(
            adapter=best.ref,
            confidence=confidence,
            runner_up=second[0].ref if second else None,
            runner_up_confidence=second[1] if second else None,
        )
        beside = f", runner-up {second[0].ref} with {second[1]:.2f}" if second else ""
        if confidence < self._threshold:
            reason = f"the best is {best.ref} with confidence {confidence:.2f}{beside}, below {self._threshold:g}"
            return self._undecided(reason, choice)
        if self._below == "ask" and second and second[1] >= _TIE * confidence:
            return self._undecided(f"{best.ref} and {second[0].ref} fit alike ({confidence:.2f})", choice)
        return Chosen(best, f"the text chose {best.ref} with confidence {confidence:.2f}{beside}", choice)

    def _undecided(self, reason: str, choice: AutoChoice | None) -> Chosen:
        if self._below == "ask":
            nearest = choice.adapter if choice is not None else None
            detail = f"which adapter is meant is not clear from the text: {reason}; name one"
            raise ProblemError("undecided", detail, nearest=nearest)
        note = f"no router chose an adapter ({reason}), so the base model answers"
        return Chosen(None, note, choice.model_copy(update={"adapter": "base"}) if choice is not None else None)

    def _version(self, name: str) -> VersionRecord:
        return self._registry.preferred(name, ALIAS)

    def _describe(self, task: str) -> str:
        try:
            return self._host.task(task).description
        except UnknownNameError:
            return ""
