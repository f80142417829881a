"""Which artefact store a server uses: the setting ``artefacts_url`` says it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from graft_server.registry.artefacts import ArtefactStore
from graft_server.registry.errors import InvalidStoreError


def open_store(root: Path, url: str | None, *, cache_bytes: int) -> ArtefactStore:
    """The store of the data folder ``root``, or of a shared folder (``file://``), both read in place; or of an object
    store, by any other URL that fsspec knows, with a cache of ``cache_bytes`` in the data folder.

    Raises:
        InvalidStoreError: the URL makes no sense, or its driver is not installed.
    """
    if url is None:
        return ArtefactStore(root)
    parsed = urlsplit(url)
    if not parsed.scheme or (parsed.scheme != "file" and "://" not in url):
        raise InvalidStoreError(f"{url!r} is no URL; write it like file:///shared/folder or s3://bucket/prefix")
    if parsed.scheme == "file":
        if parsed.netloc not in ("", "localhost") or not parsed.path.startswith("/"):
            raise InvalidStoreError(f"{url!r} is no folder; write it like file:///shared/folder")
        return ArtefactStore(root, shared=Path(unquote(parsed.path)))
    # Only who uses an object store waits for its driver.
    from graft_server.registry.cache import CachedStore
    from graft_server.registry.objects import ObjectStore

    return CachedStore(root, ObjectStore(url), budget=cache_bytes)
