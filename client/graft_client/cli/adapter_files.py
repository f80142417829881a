"""Adapter folders on this machine: which files are sent, and safe unpacking of an archive."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from graft_client.cli.outputs import named
from graft_client.errors import DataError, ProtocolError, UsageError

_REQUIRED = ("adapter_config.json", "adapter_model.safetensors")
_OPTIONAL = ("task_state.json", "graft.json", "profile.safetensors")
#: What of an adapter is sent: nothing that could run code.
FILES = (*_REQUIRED, *_OPTIONAL)
_PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


def adapter_files(folder: Path) -> list[Path]:
    """The files of a PEFT adapter folder that the server needs.

    Raises:
        UsageError: there is no such folder.
        DataError: a file is missing or lies elsewhere, or the weights are pickled.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder")
    check_names({path.name for path in folder.iterdir() if path.is_file()}, str(folder))
    files = [folder / name for name in FILES if (folder / name).is_file()]
    for file in files:
        # A folder from somebody else must not send what lies beside it.
        if not file.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"{file}: a link that leaves the folder, to {file.resolve()}; copy the file instead")
    return files


def check_names(names: Collection[str], place: str) -> None:
    """Whether what lies at ``place`` is an adapter that can be sent.

    Raises:
        DataError: a file is missing, or the weights are pickled.
    """
    if _REQUIRED[1] not in names:
        pickled = sorted(name for name in names if name.endswith(_PICKLED))
        if pickled:
            raise DataError(
                f"{place}/{pickled[0]}: pickled weights can run code when they are loaded and are refused;"
                f" save them as {_REQUIRED[1]} (PEFT's save_pretrained does so by default)"
            )
    for name in _REQUIRED:
        if name not in names:
            raise DataError(f"{place}/{name}: missing; a PEFT adapter folder holds {' and '.join(_REQUIRED)}")


def check_target(folder: Path, *, force: bool) -> None:
    """Whether files may be written to ``folder``.

    Raises:
        UsageError: it is a file, or it is not empty and ``force`` was not given.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; name a folder")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UsageError(f"{folder}: not empty; give --force to write into it")


@contextmanager
def opened(place: Path) -> Iterator[Path]:
    """An adapter folder; for a zip archive or a hub id, one that it is brought to for the body of the ``with``. Where
    all files of an archive lie in one folder, as archives of folders have it, that is the adapter's.

    Raises:
        GraftError: it can't be had from the hub; see ``hub.fetched``.
        DataError: it is no archive, it is damaged, or a name leaves its folder.
    """
    from graft_client.cli import hub

    if hub.is_hub_id(place):
        with hub.fetched(place) as folder:
            yield folder
        return
    if not place.is_file():
        yield place
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "content"
        folder.mkdir()
        with place.open("rb") as stream:
            try:
                unpack(iter(lambda: stream.read(1 << 20), b""), folder)
            except ProtocolError:
                raise DataError(
                    f"{place}: no zip archive of an adapter folder: it is damaged, or a name in it leaves its folder"
                ) from None
        inside = list(folder.iterdir())
        yield inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def unpack(pieces: Iterable[bytes], folder: Path) -> list[str]:
    """Writes the plain files of a zip archive to ``folder`` and returns their names.

    Nothing is written unless the whole archive has come and every name in it stays inside the folder.

    Raises:
        ProtocolError: it is no archive, it is damaged, or a name leaves the folder.
        OSError: a file can't be written.
    """
    with tempfile.TemporaryFile() as file:
        with named(Path(tempfile.gettempdir())):
            for piece in pieces:
                file.write(piece)
            file.flush()
        try:
            with zipfile.ZipFile(file) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                for member in members:
                    _check_name(member.filename)
                if (damaged := archive.testzip()) is not None:
                    raise ProtocolError(f"the archive is damaged at {damaged}; nothing was written")
                for member in members:
                    target = folder.joinpath(*PurePosixPath(member.filename).parts)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.unlink(missing_ok=True)  # a link there must not be written through
                    with archive.open(member) as source, named(target), target.open("xb") as sink:
                        shutil.copyfileobj(source, sink)
        except zipfile.BadZipFile as error:
            raise ProtocolError(f"the server sent no readable archive: {error}") from None
    return [member.filename for member in members]


def _check_name(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\\" in name or ":" in name:
        raise ProtocolError(f"the archive holds `{name}`, which leaves the folder; nothing was written")
