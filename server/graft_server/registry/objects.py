"""Folders in an object store, by any fsspec URL.

A folder is ``KEY/files/NAME`` for each of its files and, written last, ``KEY/manifest.json`` with their sizes and
hashes. What has no manifest is not there. Objects appear whole (a PUT is atomic), and what is read is compared with its
hash, so neither a killed process nor a damaged store passes for what was stored.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from graft_server.registry.errors import CorruptArtefactError, InvalidStoreError, StoreUnavailableError
from graft_server.registry.stored import OWNER_FILE, StoredFile, manifest_digest, owner_document, owner_in

_MANIFEST = "manifest.json"
#: What to install for the protocols that fsspec has no driver of its own for.
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
#: Parts of a key, by the first one.
_DEPTHS = {"artefacts": 3, "datasets": 2, "kept-files": 2, "checkpoints": 3}
_LONG_AGO = datetime.min.replace(tzinfo=UTC)
#: Who waits for a store that does not answer wants to know soon; by itself the driver tries for half a minute.
_PATIENCE = {
    "config_kwargs": {
        "connect_timeout": 3,
        "read_timeout": 20,
        "retries": {"mode": "standard", "total_max_attempts": 2},
    }
}


class ObjectStore:
    """Folders by key below one URL. Threads may share it; every method blocks.

    Raises:
        InvalidStoreError: the URL makes no sense, or its driver is not installed.
        StoreUnavailableError: from every method, where the store does not answer or refuses.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        #: The URL for a message, without a password.
        self.name = re.sub(r"//[^/@]*@", "//", url)
        protocol = url.partition("://")[0]
        try:
            options = _PATIENCE if _EXTRAS.get(protocol) == "s3" else {}
            # Not one that was made with other credentials in the environment.
            self._fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, **options)
        except ImportError as error:
            hint = f"pip install 'graftwork[{_EXTRAS[protocol]}]'" if protocol in _EXTRAS else str(error)
            raise InvalidStoreError(f"{self.name} needs a driver that is not installed: {hint}") from error
        except Exception as error:  # whatever a driver makes of a malformed URL
            raise InvalidStoreError(f"{self.name}: {error}") from error
        self._root = root.rstrip("/")

    def put(self, key: str, folder: Path, files: Sequence[StoredFile]) -> None:
        """Store a folder's files, unless they are there already."""
        if self.holds(key, files):
            return
        with self._answers(missing="there is no such bucket or folder"):
            for file in files:
                self._fs.put_file(str(folder / file.name), self._path(key, "files", file.name))
            listed = [[file.name, file.size, file.sha256] for file in files]
            document = {"digest": manifest_digest(files), "files": listed}
            self._fs.pipe_file(self._path(key, _MANIFEST), json.dumps(document, indent=1).encode())

    def holds(self, key: str, files: Sequence[StoredFile]) -> bool:
        """Whether the folder is there, its manifest and each file in its size. One listing; nothing is read."""
        found = {name: details["size"] for name, details in self._list(key).items()}
        wanted = {self._path(key, "files", file.name): file.size for file in files}
        return self._path(key, _MANIFEST) in found and wanted.items() <= found.items()

    def fetch(self, key: str, digest: str, target: Path) -> None:
        """Write a folder's files into the new folder ``target``, once each has the right hash.

        Raises:
            CorruptArtefactError: the folder is not there, or is not what was stored.
        """
        target.mkdir()
        for file in self._manifest(key, digest):
            place = target / file.name
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                with self._answers():
                    self._fs.get_file(self._path(key, "files", file.name), str(place))
            except FileNotFoundError as error:
                raise self._corrupt(key, f"{file.name} is gone") from error
            with place.open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != file.sha256:
                    raise self._corrupt(key, f"{file.name} is not the file that was stored")

    def delete(self, key: str, *, before_each: Callable[[], object] = lambda: None) -> None:
        """Remove a folder, its manifest first: what is left of it afterwards is not there. ``before_each`` file is
        called, and may raise to end it."""
        for path in sorted(self._list(key), key=lambda path: not path.endswith(f"{key}/{_MANIFEST}")):
            before_each()
            with self._answers(), contextlib.suppress(FileNotFoundError):  # somebody else was faster
                self._fs.rm_file(path)

    def keys(self, *, older_than: timedelta) -> list[str]:
        """The keys of all folders, whole or not, that nothing was written to lately; what else is there is not ours."""
        newest: dict[str, datetime] = {}
        for kind, depth in _DEPTHS.items():
            for path, details in self._list(kind).items():
                key = "/".join(path.removeprefix(f"{self._root}/").split("/")[:depth])
                newest[key] = max(newest.get(key, _LONG_AGO), _modified(details))
        return sorted(key for key, modified in newest.items() if datetime.now(UTC) - modified >= older_than)

    def names(self, key: str) -> list[str]:
        """The names of the whole folders right below ``key``."""
        found = (path.removeprefix(f"{self._path(key)}/").split("/") for path in self._list(key))
        return sorted(parts[0] for parts in found if parts[1:] == [_MANIFEST])

    def is_empty(self) -> bool:
        """Whether there is no folder."""
        return not any(self._list(kind) for kind in _DEPTHS)

    def owner(self) -> str | None:
        """The registry that the store belongs to, or ``None`` before it is any's."""
        try:
            with self._answers():
                content = self._fs.cat_file(self._path(OWNER_FILE))
            return owner_in(content)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def own(self, registry: str) -> None:
        """Write down which registry the store belongs to."""
        with self._answers(missing="there is no such bucket or folder"):
            self._fs.pipe_file(self._path(OWNER_FILE), owner_document(registry).encode())

    def _manifest(self, key: str, digest: str) -> list[StoredFile]:
        try:
            with self._answers():
                content = self._fs.cat_file(self._path(key, _MANIFEST))
            document = json.loads(content)
            files = [StoredFile(str(name), int(size), str(sha256)) for name, size, sha256 in document["files"]]
        except FileNotFoundError as error:
            raise self._corrupt(key, "it is gone") from error
        except (ValueError, KeyError, TypeError) as error:
            raise self._corrupt(key, f"{_MANIFEST} can't be read") from error
        # The database knows the digest, and with it every name, size and hash in here.
        if manifest_digest(files) != digest:
            raise self._corrupt(key, f"{_MANIFEST} is not the one that was stored")
        return files

    def _list(self, key: str) -> dict[str, Any]:
        with self._answers():
            # Drivers remember listings, and other servers write here too.
            self._fs.invalidate_cache()
            try:
                found: dict[str, Any] = self._fs.find(self._path(key), detail=True)
            except FileNotFoundError:
                return {}
        return found

    def _path(self, *parts: str) -> str:
        return "/".join([self._root, *filter(None, parts)])

    def _corrupt(self, key: str, reason: str) -> CorruptArtefactError:
        return CorruptArtefactError(
            f"{self.name}/{key}: {reason}; restore it there, or remove it there and publish it again"
        )

    @contextmanager
    def _answers(self, *, missing: str | None = None) -> Iterator[None]:
        """Each driver has errors of its own; all but a missing object and a full disk here mean that it is the store.
        ``missing`` says what it is that a writer does not find."""
        try:
            yield
        except StoreUnavailableError:
            raise
        except FileNotFoundError as error:
            if missing is None:
                raise
            raise StoreUnavailableError(self.name, missing) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreUnavailableError(self.name, f"{type(error).__name__}: {error}") from error


def _modified(details: dict[str, Any]) -> datetime:
    """When an object was written, under the name that its driver has for it; long ago where it does not say."""
    found = details.get("LastModified") or details.get("mtime") or details.get("updated") or details.get("created")
    if isinstance(found, int | float):
        return datetime.fromtimestamp(found, UTC)
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    if isinstance(found, datetime):
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return _LONG_AGO
