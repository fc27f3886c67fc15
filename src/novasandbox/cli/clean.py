"""`nova clean`: what dead processes have left behind, removed and named."""

from __future__ import annotations

import asyncio
from dataclasses import asdict

import click

from novasandbox.cli.options import json_option, quiet_option
from novasandbox.cli.output import escaped, human_size, print_json


@click.command("clean")
@json_option
@quiet_option
def clean_command(as_json: bool, quiet: bool) -> int:
    """Remove what dead processes have left behind.

    Machines and folders of sandboxes whose owner died, half-made files of builds that were
    killed, and what newer versions no longer read. Nothing that is in use is touched; for
    templates that are no longer needed see nova template prune.
    """
    from novasandbox.core.cleaning import clean

    done = asyncio.run(clean())
    if as_json:
        print_json(asdict(done))
    elif not quiet:
        for identity in done.sandboxes:
            print(f"ended sandbox {escaped(identity)}, which its owner had left behind")
        for path in done.files:
            print(f"removed {escaped(path)}")
        if done.bytes:
            print(f"{human_size(done.bytes)} are free again")
        if not done.sandboxes and not done.files:
            print("nothing was left behind")
    return 0


VERBS = {"clean": clean_command}
