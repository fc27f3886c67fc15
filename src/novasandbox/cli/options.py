"""Options that several verbs share, and how their values are read."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])

_MACHINE = (
    "template",
    "image",
    "snapshot",
    "cold",
    "memory",
    "cpus",
    "disk",
    "name",
    "provider",
    "kernel",
)
_UNITS = {"k": 1 / 1024, "": 1, "m": 1, "g": 1024, "t": 1024 * 1024}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|[smhd]?)")


def size(text: str) -> int:
    """Read a size in MiB: `512`, `512M`, `1.5G`; whole MiB only."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise click.BadParameter(f"{text!r} is not a size; give MiB, or a unit as in 512M or 1G.")
    number = float(match[1]) * _UNITS[match[2].lower()]
    if number < 1 or number != int(number):
        raise click.BadParameter(f"{text!r} is not a whole number of MiB.")
    return int(number)


def duration(text: str) -> float:
    """Read seconds above 0: `90`, `90s`, `5m`, `1h`; `none` is infinity."""
    if text.strip().lower() in ("none", "never"):
        return math.inf
    match = _DURATION.fullmatch(text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise click.BadParameter(
            f"{text!r} is not a duration; give seconds above 0, a unit as in 5m, or none."
        )
    return float(match[1]) * _SECONDS[match[2]]


def limit(seconds: float | None) -> float | None:
    """A duration as the library has it: None is no end."""
    return None if seconds is None or math.isinf(seconds) else seconds


def _all(function: Function, *options: Callable[[Function], Function]) -> Function:
    for option in reversed(options):
        function = option(function)
    return function


def json_option(function: Function) -> Function:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def quiet_option(function: Function) -> Function:
    """`--quiet`."""
    return click.option("-q", "--quiet", is_flag=True, help="Print results only.")(function)


def box_argument(function: Function) -> Function:
    """The BOX argument: an id, a unique start of one, or a name."""
    return click.argument("box", shell_complete=complete_box)(function)


def complete_box(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Ids and names of living sandboxes, for the shell's completion."""
    from click.shell_completion import CompletionItem

    from novasandbox.core import registry

    found = []
    for record in registry.records():
        word = record.name or record.id
        if word.startswith(incomplete):
            found.append(CompletionItem(word, help=record.state.value))
    return found


def complete_snapshot(
    _ctx: click.Context, _param: click.Parameter, incomplete: str
) -> list[click.shell_completion.CompletionItem]:
    """Names and ids of snapshots, for the shell's completion."""
    from click.shell_completion import CompletionItem

    from novasandbox.core import snapshots

    found = []
    for kept in snapshots.all_kept():
        word = kept.name or kept.id
        if word.startswith(incomplete):
            found.append(CompletionItem(word, help=f"of {kept.sandbox}"))
    return found


def pool_option(function: Function) -> Function:
    """`--pool`."""
    text = "Take it from a pool of its kind (nova pool), where one is ready."
    return click.option("--pool", is_flag=True, help=text)(function)


def machine_options(function: Function) -> Function:
    """What a new sandbox shall be, and its name."""
    name = click.option("--name", help="A name, unique among living sandboxes.")
    return kind_options(name(function))


def kind_options(function: Function) -> Function:
    """What a new sandbox shall be."""
    return _all(
        function,
        click.option("--template", metavar="NAME", help="Template.  [default: debian-python]"),
        click.option("--image", metavar="REF", help="OCI image, instead of a template."),
        click.option(
            "--snapshot",
            metavar="NAME",
            shell_complete=complete_snapshot,
            help="Go on where another sandbox stood, with its sizes; instead of a template.",
        ),
        click.option(
            "--cold",
            is_flag=True,
            default=None,
            help="Boot it, instead of copying its template's snapshot.",
        ),
        click.option("--memory", type=size, help="Memory: 512M, 1G.  [default: 256M]"),
        click.option("--cpus", type=int, help="Virtual CPUs.  [default: 1]"),
        click.option("--disk", type=size, help="Writable disk: 4G.  [default: 2G]"),
        click.option("--provider", help="Hypervisor, as listed by nova doctor.  [default: auto]"),
        click.option(
            "--kernel",
            type=click.Path(exists=True, dir_okay=False),
            help="A guest kernel of your own.  [default: NOVA_KERNEL, else Debian's]",
        ),
    )


def command_options(function: Function) -> Function:
    """What a command gets."""
    return _all(
        function,
        click.option(
            "-e",
            "--env",
            "env",
            multiple=True,
            metavar="K[=V]",
            help="Set a variable; K alone takes its value from this environment.",
        ),
        click.option(
            "--env-file",
            "env_files",
            multiple=True,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Read variables from a file, a K[=V] each line.",
        ),
        click.option("-u", "--user", help="User, or UID, to run as."),
        click.option("-w", "--cwd", metavar="DIR", help="Folder to run in."),
    )


def rest_options(function: Function) -> Function:
    """What a sandbox does at the end of its time, and when nobody uses it."""
    wishes = click.Choice(["kill", "pause", "hibernate"])
    return _all(
        function,
        click.option(
            "--on-timeout",
            type=wishes,
            default="kill",
            show_default=True,
            help="What happens then; it is paused or hibernated until it is used again.",
        ),
        click.option(
            "--idle-timeout",
            type=duration,
            metavar="DURATION",
            help="How long nobody may use it, and nothing in it compute; none: for ever.",
        ),
        click.option(
            "--on-idle", type=wishes, help="What happens after that.  [default: hibernate]"
        ),
    )


def machine_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Sandbox.create` for the machine options that were given."""
    names = {"memory": "memory_mib", "cpus": "vcpus", "disk": "disk_mib"}
    return {names.get(n, n): options[n] for n in _MACHINE if options.get(n) is not None}


def environment(words: tuple[str, ...], files: tuple[Path, ...]) -> dict[str, str]:
    """The variables of `--env-file` and, over them, `--env`. No message shows a value."""
    found: dict[str, str] = {}
    for path in files:
        for number, line in enumerate(_lines(path), 1):
            text = line.strip()
            if text and not text.startswith("#"):
                found |= _variable(line.lstrip(), f"{path}, line {number}")
    for word in words:
        found |= _variable(word, "--env")
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise click.UsageError(f"{path} is not UTF-8 text.") from None


def _variable(text: str, where: str) -> dict[str, str]:
    name, equals, value = text.partition("=")
    if not name.strip() or "\0" in text:
        raise click.UsageError(f"{where}: a variable is K=VALUE, or K alone.")
    if equals:
        return {name: value}
    name = name.strip()
    if name not in os.environ:
        raise click.UsageError(f"{where}: {name} is not set here; give {name}=VALUE.")
    return {name: os.environ[name]}
