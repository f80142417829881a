"""Gettext PO catalogues, read by polib."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow


class PoReader(DatasetReader):
    """Translated entries. Fuzzy, obsolete and untranslated ones and the header are left out.

    An entry with plural forms gives its singular with the first form and its plural with the last one. The
    source language is ``X-Source-Language`` if the header has it, otherwise English, as is gettext's custom.
    """

    name = "po"
    description = "Gettext PO catalogues (.po); fuzzy, obsolete and untranslated entries are left out."
    tasks: ClassVar[frozenset[str]] = frozenset({"translation"})

    def accepts(self, files: Sequence[Path]) -> bool:
        return all(path.suffix.lower() == ".po" for path in files)

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        for path in files:
            yield from _read_file(path)


def _read_file(path: Path) -> Iterator[RawRow | DataError]:
    import polib

    try:
        catalogue = polib.pofile(str(path))
    except UnicodeDecodeError as error:
        message = f"byte offset {error.start} is not valid {error.encoding}, the charset the header names"
        raise DataError(path.name, message, fatal=True) from None
    except OSError as error:
        # polib reports syntax errors as OSError: "Syntax error in po file FILE (line N): why".
        raise DataError(path.name, f"not a valid PO file: {_without_path(str(error), path)}", fatal=True) from None
    languages = {
        "source_language": catalogue.metadata.get("X-Source-Language", "en"),
        "target_language": catalogue.metadata.get("Language", ""),
    }
    for entry in catalogue:
        if entry.obsolete or not entry.translated():
            continue
        for source, target in _forms(entry):
            yield RawRow(f"{path.name}:{entry.linenum}", {"source": source, "target": target, **languages})


def _forms(entry: Any) -> list[tuple[str, str]]:
    if not entry.msgid_plural:
        return [(entry.msgid, entry.msgstr)]
    forms = [entry.msgstr_plural[index] for index in sorted(entry.msgstr_plural)]
    plural = (entry.msgid_plural, forms[-1])
    return [plural] if len(forms) == 1 else [(entry.msgid, forms[0]), plural]


def _without_path(message: str, path: Path) -> str:
    return message.replace(f" in po file {path}", "").replace(str(path), path.name)


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(PoReader())
