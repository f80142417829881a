"""What can go wrong in the registry. Every text is one sentence that can be shown as it is."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path


class RegistryError(Exception):
    """Base of the registry's errors."""


class UnknownError(RegistryError):
    """Nothing of that kind has that name. ``nearest`` is the closest name that exists."""

    def __init__(self, kind: str, name: str, nearest: str | None = None) -> None:
        hint = f"; did you mean {nearest!r}?" if nearest else ""
        super().__init__(f"no {kind} {name!r}{hint}")
        self.kind = kind
        self.name = name
        self.nearest = nearest

    @classmethod
    def among(cls, kind: str, name: str, names: Iterable[str]) -> UnknownError:
        """The error with the nearest of ``names``."""
        return cls(kind, name, next(iter(get_close_matches(name, list(names), n=1)), None))


class ConflictError(RegistryError):
    """The registry's state does not allow it."""


class LostClaimError(ConflictError):
    """A server writes about a job that is no longer its own: another one took it over, or it has ended."""

    def __init__(self, job: str) -> None:
        super().__init__(f"job {job!r} is not at work on this server any more")


class InvalidNameError(RegistryError):
    """An adapter can't have this name."""


class UnstorableError(RegistryError):
    """A number or a text that no database has a place for, and that therefore nothing has."""

    def __init__(self) -> None:
        super().__init__("a number in the request is too large, or a text in it has a character that can't be stored")


class NewerDatabaseError(RegistryError):
    """The database was written by a newer release."""

    def __init__(self, found: str, known: str) -> None:
        super().__init__(
            f"the registry's database is at revision {found}, which this release does not know (its newest is "
            f"{known}): upgrade graftwork, or use another data folder"
        )
        self.found = found
        self.known = known


class InvalidDatabaseError(RegistryError):
    """The URL of the database makes no sense."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the setting `database_url` can't be used: {reason}")


class InvalidStoreError(RegistryError):
    """The URL of the artefact store makes no sense."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the setting `artefacts_url` can't be used: {reason}")


class UnavailableError(RegistryError):
    """The database does not answer. Nothing was changed."""

    def __init__(self, database: str) -> None:
        super().__init__(f"the registry's database {database} does not answer; try again soon")


class UncertainError(UnavailableError):
    """The database went away while a change was being committed: whether it was made is not known."""

    def __init__(self, database: str) -> None:
        RegistryError.__init__(
            self,
            f"the registry's database {database} went away during a change, which may have been made; look before "
            "you try again",
        )


class StoreUnavailableError(UnavailableError):
    """The artefact store does not answer, or refuses. Nothing was changed."""

    def __init__(self, store: str, reason: str) -> None:
        RegistryError.__init__(self, f"the artefact store {store} does not answer ({reason}); try again soon")
        self.store = store


class StorageFullError(RegistryError):
    """No space is left, or a quota is used up. Nothing was changed."""

    def __init__(self, place: Path | str) -> None:
        super().__init__(f"no space is left on the disk of {place}: free some and try again")


class RefusedArtefactError(RegistryError):
    """A folder holds something that is never stored: a link, a device, a pickle, or nothing at all."""


class CorruptArtefactError(RegistryError):
    """Stored files are not what was stored."""


class NotFetchedError(RegistryError):
    """A stored folder has to be fetched from the object store first, and who wants to read it must not wait for that
    where it is. ``digest`` is that of its files."""

    def __init__(self, folder: Path, digest: str) -> None:
        super().__init__(f"{folder} is not in the cache")
        self.folder = folder
        self.digest = digest


@contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Turn a full disk into a ``StorageFullError``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(place) from error
        raise
