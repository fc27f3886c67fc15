"""`nova completion`: scripts that complete verbs, options and sandboxes in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from novasandbox.cli.options import json_option, quiet_option
from novasandbox.cli.output import print_json


@click.command("completion")
@json_option
@quiet_option
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(ctx: click.Context, shell: str, as_json: bool, quiet: bool) -> int:
    """Print the completion script for SHELL.

    \b
    bash: eval "$(nova completion bash)"        in ~/.bashrc
    zsh:  eval "$(nova completion zsh)"         in ~/.zshrc, after compinit
    fish: nova completion fish > ~/.config/fish/completions/nova.fish
    """
    del quiet
    kind = get_completion_class(shell)
    assert kind is not None
    # Not `source()`: for bash that starts one, to look at its version.
    made = kind(ctx.find_root().command, {}, "nova", "_NOVA_COMPLETE")
    script = made.source_template % made.source_vars()
    if as_json:
        print_json({"shell": shell, "script": script})
    else:
        print(script)
    return 0


VERBS = {"completion": completion_command}
