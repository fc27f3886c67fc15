"""`nova template`: what sandboxes start from."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from novasandbox.cli.options import json_option, quiet_option
from novasandbox.cli.output import escaped, human_size, print_json, print_table

if TYPE_CHECKING:
    from novasandbox.core.template_manager import TemplateInfo, TemplateManager


def _manager() -> TemplateManager:
    from novasandbox.core.template_manager import TemplateManager

    return TemplateManager()


def complete_template(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of templates, for the shell's completion."""
    rows = asyncio.run(_manager().list())
    return [row.template.name for row in rows if row.template.name.startswith(incomplete)]


@click.group("template", invoke_without_command=True)
@click.pass_context
def template_group(ctx: click.Context) -> None:
    """List, show, check, build and remove templates."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@template_group.command("ls")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
def ls_command(as_json: bool, quiet: bool) -> int:
    """List templates, and whether they are built."""
    rows = asyncio.run(_manager().list())
    if as_json:
        print_json([_row_data(row) for row in rows])
    elif quiet:
        for row in rows:
            print(escaped(row.template.name))
    else:
        columns = ("NAME", "BUILT", "SIZE", "SOURCE", "DESCRIPTION")
        print_table(columns, [_row(row) for row in rows])
    return 0


def _row_data(row: TemplateInfo) -> dict[str, Any]:
    return {
        "name": row.template.name,
        "built": row.built,
        "size": row.size,
        "path": str(row.path),
        "source": row.template.source.type,
        "description": row.template.description,
    }


def _row(row: TemplateInfo) -> tuple[str, ...]:
    return (
        row.template.name,
        "yes" if row.built else "no",
        human_size(row.size) if row.built else "-",
        row.template.source.type,
        row.template.description,
    )


@template_group.command("show")
@json_option
@quiet_option
@click.argument("name", shell_complete=complete_template)
def show_command(name: str, as_json: bool, quiet: bool) -> int:
    """Show all settings of the template NAME, which may also be a file's path."""
    import json

    del quiet
    data = asyncio.run(_manager().get(name)).model_dump(mode="json")
    if as_json:
        print_json(data)
    else:
        print(json.dumps(data, indent=2))
    return 0


@template_group.command("build")
@click.option(
    "--force", is_flag=True, help="Ask for newer packages, and check every byte that is kept."
)
@click.option(
    "--kernel",
    type=click.Path(exists=True, dir_okay=False),
    help="A guest kernel of your own.  [default: NOVA_KERNEL, else Debian's]",
)
@json_option
@quiet_option
@click.argument("name", default="debian-python", shell_complete=complete_template)
def build_command(name: str, force: bool, kernel: str | None, as_json: bool, quiet: bool) -> int:
    """Build the template NAME (debian-python), or take what is there."""
    from novasandbox.cli import loop
    from novasandbox.cli.progress import build

    async def work(_interrupts: loop.Interrupts) -> int:
        artifacts = await build(name, kernel=kernel, quiet=quiet or as_json, force=force)
        if as_json:
            files = {n: str(getattr(artifacts, n)) for n in ("kernel", "initramfs", "rootfs")}
            print_json({"name": artifacts.template.name, "key": artifacts.key, **files})
        elif not quiet:
            print(f"{escaped(artifacts.template.name)} is built")
        return 0

    return loop.run(work)


@template_group.command("validate")
@json_option
@quiet_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def validate_command(file: Path, as_json: bool, quiet: bool) -> int:
    """Check a template's FILE; each fault is named with its line."""
    template = asyncio.run(_manager().validate(file))
    if as_json:
        print_json({"name": template.name, "valid": True})
    elif not quiet:
        print(f"{escaped(template.name)} is a valid template")
    return 0


@template_group.command("rm")
@json_option
@quiet_option
@click.argument("name", shell_complete=complete_template)
def rm_command(name: str, as_json: bool, quiet: bool) -> int:
    """Remove what was built of the template NAME; its file stays."""
    _tell(asyncio.run(_manager().remove(name)), as_json, quiet)
    return 0


@template_group.command("prune")
@json_option
@quiet_option
def prune_command(as_json: bool, quiet: bool) -> int:
    """Remove what neither a template nor a sandbox uses, and old downloads."""
    _tell(asyncio.run(_manager().prune()), as_json, quiet)
    return 0


def _tell(removed: dict[str, int], as_json: bool, quiet: bool) -> None:
    if as_json:
        print_json({"removed": removed, "bytes": sum(removed.values())})
    elif not quiet:
        for key, size in removed.items():
            print(f"removed {escaped(key)} ({human_size(size)})")
        print(f"{human_size(sum(removed.values()))} are free again")


VERBS = {"template": template_group}
