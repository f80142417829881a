"""Languages by ISO 639-1 code: their English names for prompts, and the code of one that is told otherwise."""

from __future__ import annotations

import re

_NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech", "da": "Danish",
    "de": "German", "el": "Greek", "en": "English", "es": "Spanish", "et": "Estonian", "eu": "Basque",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "ga": "Irish", "gl": "Galician", "he": "Hebrew",
    "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "hy": "Armenian", "id": "Indonesian",
    "is": "Icelandic", "it": "Italian", "ja": "Japanese", "ka": "Georgian", "kk": "Kazakh", "ko": "Korean",
    "lt": "Lithuanian", "lv": "Latvian", "mk": "Macedonian", "ms": "Malay", "nb": "Norwegian Bokmål",
    "nl": "Dutch", "nn": "Norwegian Nynorsk", "no": "Norwegian", "pl": "Polish", "pt": "Portuguese",
    "ro": "Romanian", "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian",
    "sv": "Swedish", "sw": "Swahili", "ta": "Tamil", "te": "Telugu", "th": "Thai", "tr": "Turkish",
    "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip
_CODES = {name.lower(): code for code, name in _NAMES.items()} | {"mandarin": "zh", "cantonese": "zh", "farsi": "fa"}
#: ISO 639-2 and 639-3, with the codes of the languages that are usually written as Chinese, Malay or Norwegian.
_THREE_LETTERS = {
    "ara": "ar", "arb": "ar", "bul": "bg", "ben": "bn", "cat": "ca", "ces": "cs", "cze": "cs", "dan": "da",
    "deu": "de", "ger": "de", "ell": "el", "gre": "el", "eng": "en", "spa": "es", "est": "et", "eus": "eu",
    "baq": "eu", "fas": "fa", "per": "fa", "pes": "fa", "fin": "fi", "fra": "fr", "fre": "fr", "gle": "ga",
    "glg": "gl", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu", "hye": "hy", "arm": "hy", "ind": "id",
    "isl": "is", "ice": "is", "ita": "it", "jpn": "ja", "kat": "ka", "geo": "ka", "kaz": "kk", "kor": "ko",
    "lit": "lt", "lav": "lv", "lvs": "lv", "mkd": "mk", "mac": "mk", "msa": "ms", "may": "ms", "zsm": "ms",
    "nob": "nb", "nld": "nl", "dut": "nl", "nno": "nn", "nor": "no", "pol": "pl", "por": "pt", "ron": "ro",
    "rum": "ro", "rus": "ru", "slk": "sk", "slo": "sk", "slv": "sl", "sqi": "sq", "alb": "sq", "srp": "sr",
    "swe": "sv", "swa": "sw", "swh": "sw", "tam": "ta", "tel": "te", "tha": "th", "tur": "tr", "ukr": "uk",
    "urd": "ur", "vie": "vi", "zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh",
}  # fmt: skip


def primary_subtag(tag: str) -> str:
    """``pt`` of ``pt-BR`` or ``pt_BR`` (RFC 5646, section 2.2.1)."""
    return tag.replace("_", "-").split("-")[0].lower()


def language_code(tag: str) -> str:
    """``zh`` of ``zh-Hant``, ``zho_Hans``, ``Chinese`` and ``Simplified Chinese``; the primary subtag of anything
    else."""
    subtag = primary_subtag(tag.strip())
    words = re.findall(r"\w+", tag.lower())
    named = next((_CODES[name] for name in (tag.strip().lower(), *words) if name in _CODES), subtag)
    return _THREE_LETTERS.get(named, named)


def language_name(tag: str) -> str:
    """``German`` for ``de``, ``Portuguese (pt-BR)`` for ``pt-BR``; anything but a known code stays as it is."""
    name = _NAMES.get(primary_subtag(tag))
    if name is None:
        return tag
    return name if len(tag) == 2 else f"{name} ({tag})"
