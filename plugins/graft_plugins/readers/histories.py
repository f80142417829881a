"""Turns interactions (who took what, when) into one history a user, oldest first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from graft_plugins.reader import RawRow


class Interaction(NamedTuple):
    """One user took one item. ``time`` is in any unit that orders; ``place`` is where it stands."""

    user: str
    item: str
    time: float
    place: str


def histories(interactions: list[Interaction], titles: Mapping[str, str]) -> Iterator[RawRow]:
    """One row a user, in the order in which the users first appear; ties in time keep the order of the file.

    An item without a title goes by its id.
    """
    by_user: dict[str, list[Interaction]] = {}
    for interaction in interactions:
        by_user.setdefault(interaction.user, []).append(interaction)
    for user, taken in by_user.items():
        ordered = sorted(taken, key=lambda interaction: interaction.time)
        data = {
            "user": user,
            "history": [titles.get(interaction.item, interaction.item) for interaction in ordered],
            "timestamps": [interaction.time for interaction in ordered],
        }
        yield RawRow(taken[0].place, data)
