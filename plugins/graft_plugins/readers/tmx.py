"""TMX 1.4 translation memories, parsed as a stream with defusedxml."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar
from xml.sax import SAXParseException
from xml.sax.handler import ContentHandler

from graft_plugins.hookspecs import hookimpl
from graft_plugins.reader import DataError, DatasetReader, RawRow

_CHUNK = 65536
#: Inline elements whose content is formatting code, not text (TMX 1.4b, section 3.3).
_CODES = {"bpt", "ept", "it", "ph", "ut"}


class TmxReader(DatasetReader):
    """Each unit's source segment with each of its other languages.

    The source is the segment in the header's ``srclang``, or the unit's first one where there is none.
    """

    name = "tmx"
    description = "TMX translation memories (.tmx)."
    tasks: ClassVar[frozenset[str]] = frozenset({"translation"})

    def accepts(self, files: Sequence[Path]) -> bool:
        return all(path.suffix.lower() == ".tmx" for path in files)

    def read(self, files: Sequence[Path]) -> Iterator[RawRow | DataError]:
        for path in files:
            yield from _read_file(path)


def _read_file(path: Path) -> Iterator[RawRow | DataError]:
    from defusedxml import DefusedXmlException
    from defusedxml.sax import make_parser

    handler = _Units(path.name)
    parser: Any = make_parser()
    # TMX files name their DTD. This only lets that pass: SAX does not fetch it, and entities stay forbidden.
    parser.forbid_external = False
    parser.setContentHandler(handler)
    # SAX does this by itself only in ``parse``, not in ``feed``.
    handler.setDocumentLocator(parser)
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                parser.feed(chunk)
                yield from handler.drain()
        parser.close()
    except SAXParseException as error:
        yield from handler.drain()
        place = f"{path.name}:{error.getLineNumber()}"
        yield DataError(place, f"not valid XML: {error.getMessage()}", fatal=True)
    except DefusedXmlException as error:
        yield DataError(path.name, f"refused, because the file defines entities: {type(error).__name__}", fatal=True)
    else:
        yield from handler.drain()


class _Units(ContentHandler):
    """Collects the rows of the units that have ended."""

    def __init__(self, file_name: str) -> None:
        super().__init__()
        self._file_name = file_name
        self._rows: list[RawRow | DataError] = []
        self._source_language = ""
        self._line = 0
        self._language = ""
        self._segments: list[tuple[str, str]] = []
        self._text: list[str] | None = None
        self._codes = 0

    def drain(self) -> list[RawRow | DataError]:
        """The rows since the last call."""
        rows, self._rows = self._rows, []
        return rows

    def startElement(self, name: str, attrs: Any) -> None:  # noqa: N802 - SAX's name
        if name == "header":
            self._source_language = attrs.get("srclang", "").lower()
        elif name == "tu":
            self._line = self._locator.getLineNumber() or 0  # type: ignore[attr-defined]
            self._segments = []
        elif name == "tuv":
            self._language = attrs.get("xml:lang") or attrs.get("lang", "")
        elif name == "seg":
            self._text = []
        elif name in _CODES:
            self._codes += 1

    def characters(self, content: str) -> None:
        if self._text is not None and not self._codes:
            self._text.append(content)

    def endElement(self, name: str) -> None:  # noqa: N802 - SAX's name
        if name in _CODES:
            self._codes -= 1
        elif name == "seg" and self._text is not None:
            self._segments.append((self._language, "".join(self._text).strip()))
            self._text = None
        elif name == "tu":
            self._finish_unit()

    def _finish_unit(self) -> None:
        place = f"{self._file_name}:{self._line}"
        filled = [(language, text) for language, text in self._segments if text]
        if len(filled) < 2:
            self._rows.append(DataError(place, "the unit has fewer than two segments with text"))
            return
        source = next((pair for pair in filled if self._is_source(pair[0])), filled[0])
        for target in filled:
            if target[0] != source[0]:
                data = {
                    "source": source[1],
                    "target": target[1],
                    "source_language": source[0],
                    "target_language": target[0],
                }
                self._rows.append(RawRow(place, data))

    def _is_source(self, language: str) -> bool:
        """``en-US`` counts as ``en`` and the other way round."""
        mine, wanted = language.lower(), self._source_language
        return bool(wanted) and (mine == wanted or mine.split("-")[0] == wanted.split("-")[0])


@hookimpl
def register_readers(register: Callable[[DatasetReader], None]) -> None:
    register(TmxReader())
