"""The format of Debian's control files: paragraphs of `Field: value` lines."""

from __future__ import annotations


def paragraphs(text: str) -> list[dict[str, str]]:
    """Paragraphs of `Field: value` with continuation lines; names in lower case."""
    found: list[dict[str, str]] = []
    fields: dict[str, str] = {}
    name = ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                found.append(fields)
            fields, name = {}, ""
        elif line[0] in " \t":
            if name:
                fields[name] += "\n" + line.strip()
        else:
            name, colon, value = line.partition(":")
            name = name.strip().lower() if colon else ""
            if name:
                fields[name] = value.strip()
    return found
