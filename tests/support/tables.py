"""The tables of a README, to hold against the code they describe."""

from __future__ import annotations

from pathlib import Path


def table(readme: Path, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, header and rule left out."""
    lines = readme.read_text().splitlines()
    start = lines.index(f"## {heading}")
    rows: list[list[str]] = []
    for line in lines[start + 1 :]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif rows or line.startswith("## "):
            break
    return rows[2:]
