"""Reading apt's configuration on this machine: where packages come from, and through what."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from novasandbox.images.deb822 import paragraphs


@dataclass(frozen=True)
class Source:
    """One entry of apt's: packages of some suites from one place."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""


@dataclass(frozen=True)
class AptSettings:
    """What of apt's configuration concerns fetching: proxies by scheme, and validity checks."""

    proxies: dict[str, str] = field(default_factory=dict)
    check_valid_until: bool = True


def read_sources(etc: Path) -> list[Source]:
    """All sources in an apt configuration folder; what cannot be read is left out."""
    found: list[Source] = []
    parts = etc / "sources.list.d"
    files = [etc / "sources.list"]
    files += sorted(parts.iterdir()) if parts.is_dir() else []
    for path in files:
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        if path.suffix == ".sources":
            found += parse_deb822(text)
        elif path.suffix == ".list":
            found += parse_lines(text)
    return [_with_mirror_lists(source) for source in found]


def parse_lines(text: str) -> list[Source]:
    """The sources in one-line style: `deb [option=value …] URI suite component …`."""
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?([^#]*)", line)
        words = match[2].split() if match else []
        if match is None or len(words) < 2:
            continue
        options = dict(word.split("=", 1) for word in (match[1] or "").split() if "=" in word)
        found.append(
            Source((words[0],), (words[1],), tuple(words[2:]), options.get("signed-by", ""))
        )
    return found


def parse_deb822(text: str) -> list[Source]:
    """The sources in deb822 style: paragraphs of `Field: value`."""
    found = []
    for fields in paragraphs(text):
        enabled = fields.get("enabled", "yes").strip().lower() not in ("no", "false", "0", "off")
        if enabled and "deb" in fields.get("types", "").split():
            found.append(
                Source(
                    tuple(fields.get("uris", "").split()),
                    tuple(fields.get("suites", "").split()),
                    tuple(fields.get("components", "").split()),
                    fields.get("signed-by", "").strip(),
                )
            )
    return found


def apt_settings() -> AptSettings:
    """What `apt-config dump` says; the defaults where there is no apt."""
    try:
        dump = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        dump = ""
    return parse_settings(dump)


def parse_settings(dump: str) -> AptSettings:
    """The settings in the output of `apt-config dump`; the environment's proxies else."""
    values = {
        match[1].lower(): match[2]
        for match in re.finditer(r'^(\S+)\s+"(.*)";\s*$', dump, re.MULTILINE)
    }
    proxies = urllib.request.getproxies()
    for scheme in ("http", "https"):
        proxy = values.get(f"acquire::{scheme}::proxy", "")
        if proxy.upper() == "DIRECT":
            proxies.pop(scheme, None)
        elif proxy:
            proxies[scheme] = proxy
    check = values.get("acquire::check-valid-until", "true").lower()
    return AptSettings(proxies, check not in ("false", "no", "0", "off", "without", "disable"))


def _with_mirror_lists(source: Source) -> Source:
    """`mirror+file:` entries (Debian's cloud images have them) replaced by what they list."""
    uris: list[str] = []
    for uri in source.uris:
        if not uri.startswith(("mirror+file:", "mirror:file:")):
            uris.append(uri)
            continue
        path = Path("/" + uri.split("file:", 1)[1].lstrip("/"))
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        uris += [line.split()[0] for line in lines if line.strip() and line[0] != "#"]
    return Source(tuple(uris), source.suites, source.components, source.signed_by)
