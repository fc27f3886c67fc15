"""A template: what a sandbox starts from, as its JSON file says it.

The file is written by people, so an error names the line, the field and what was meant.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from novasandbox.errors import InvalidConfig

if TYPE_CHECKING:
    from pathlib import Path

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$")]
PackageName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9+.-]+$")]
UserName = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_-]{0,31}$")]
GuestPath = Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=4095)]
Command = str | tuple[str, ...]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class DebianSource(_Strict):
    """A root of Debian packages: the essential ones, those named, and what they depend on.

    suite: the release by its code name. exclude: packages that nothing draws in.
    """

    type: Literal["debian"]
    suite: Literal["bookworm", "trixie"] = "bookworm"
    packages: tuple[PackageName, ...] = ()
    exclude: tuple[PackageName, ...] = ()


class OciSource(_Strict):
    """The root of an OCI image.

    image: a reference such as `python:3.13-slim`. digest: `sha256:…` of its manifest, to pin it.
    """

    type: Literal["oci"]
    image: Annotated[str, Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._/:@-]{0,254}$")]
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")] | None = None


class Resources(_Strict):
    """What a sandbox of this template gets where its creator says nothing."""

    vcpus: Annotated[int, Field(ge=1, le=64)] = 1
    memory_mib: Annotated[int, Field(ge=32, le=1 << 20)] = 256
    disk_mib: Annotated[int, Field(ge=16, le=1 << 22)] = 2048


class Warmup(_Strict):
    """What is done once before the template's snapshot is taken.

    imports: Python modules that the interpreter has already. commands: run as the user.
    files: paths that are read, so that they are in the page cache.
    """

    imports: tuple[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")], ...] = ()
    commands: tuple[Command, ...] = ()
    files: tuple[GuestPath, ...] = ()


class Hooks(_Strict):
    """Commands that run in the guest around a snapshot, as root."""

    before_snapshot: tuple[Command, ...] = ()
    after_restore: tuple[Command, ...] = ()


class Template(_Strict):
    """A template.

    user: who commands run as. workdir: where they start. env: added to their environment.
    steps: commands that change the root when it is built (not in this version).
    minimum_memory_mib: with less the guest does not come up.
    """

    name: Name
    version: str = "1"
    description: str = ""
    source: Annotated[DebianSource | OciSource, Field(discriminator="type")]
    steps: tuple[Command, ...] = ()
    user: UserName = "user"
    workdir: GuestPath = "/home/user"
    env: dict[str, str] = Field(default_factory=dict)
    resources: Resources = Resources()
    minimum_memory_mib: Annotated[int, Field(ge=32)] = 96
    warmup: Warmup = Warmup()
    hooks: Hooks = Hooks()

    @field_validator("env")
    @classmethod
    def _names_are_variables(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} cannot be the name of an environment variable")
            if "\0" in value:
                raise ValueError(f"the value of {name} has a NUL byte")
        return env


def load(path: Path) -> Template:
    """The template in a file.

    Raises InvalidConfig where it cannot be read, is no JSON or not a template.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidConfig(f"{path} cannot be read", why=reason) from error
    try:
        content = json.loads(text, object_pairs_hook=_no_twins)
    except (json.JSONDecodeError, RecursionError) as error:
        raise InvalidConfig(f"{path} is not JSON", why=str(error)) from error
    except _Twice as error:
        raise InvalidConfig(
            f"{path} is not a template", why=f"the field {error} stands there twice"
        ) from error
    return parse(content, where=str(path), text=text)


def parse(content: Any, *, where: str = "The template", text: str = "") -> Template:
    """A template from what was read from JSON.

    where: its name in messages. text: the JSON, to find lines in.

    Raises InvalidConfig and names each wrong field.
    """
    try:
        return Template.model_validate(content)
    except ValidationError as error:
        faults = [_fault(detail, text) for detail in error.errors(include_url=False)]
        raise InvalidConfig(
            f"{where} is not a valid template",
            why="; ".join(faults),
            fix="The fields are described in docs/templates.md",
        ) from error


class _Twice(ValueError):
    """A field that stands in an object twice; JSON takes the last one silently."""


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(next(name for name in names if names.count(name) > 1))
    return content


def _fault(detail: Any, text: str) -> str:
    """One fault as a sentence: line, field, what is wrong, what was perhaps meant."""
    # Of a union pydantic names the branch too, which is no field of the file.
    path = [
        part for part in detail["loc"] if part not in ("debian", "oci", "str", "tuple[str, ...]")
    ]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] == "extra_forbidden":
        message = "there is no such field"
        near = difflib.get_close_matches(str(path[-1]), _fields(path[:-1], detail["loc"]), n=1)
        message += f" (did you mean {near[0]}?)" if near else ""
    line = _line(text, path)
    place = f"line {line}, " if line else ""
    return f"{place}{field.lstrip('.') or 'the whole'}: {message}"


def _fields(path: list[Any], loc: tuple[Any, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "resources": Resources,
        "warmup": Warmup,
        "hooks": Hooks,
        "source": OciSource if "oci" in loc else DebianSource,
    }
    model = models.get(str(path[0]), Template) if path else Template
    return list(model.model_fields)


def _line(text: str, path: list[Any]) -> int | None:
    """The line in which a field stands, as far as looking for its name finds it."""
    at = 0
    for part in path:
        if isinstance(part, str):
            match = re.compile(re.escape(json.dumps(part)) + r"\s*:").search(text, at)
            if match is None:
                break
            at = match.start() + 1
    return text.count("\n", 0, at) + 1 if at else None
