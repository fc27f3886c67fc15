"""`nova doctor`: what this host can do, and what mends what it cannot."""

from __future__ import annotations

import sys

import click

from novasandbox.cli.options import json_option
from novasandbox.cli.output import escaped, print_json

_MARKS = {"ok": ("ok  ", "32"), "warn": ("warn", "33"), "fail": ("FAIL", "31;1")}


@click.command("doctor")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print only what could be better.")
def doctor_command(as_json: bool, quiet: bool) -> int:
    """Say what this host can do, why not more, and the command that mends it.

    The exit code is 0 where sandboxes can run, else 1.
    """
    from novasandbox.core.doctor import doctor

    report = doctor()
    if as_json:
        print_json(report.as_data())
        return 0 if report.ok else 1
    for finding in report.findings:
        if quiet and finding.state == "ok":
            continue
        mark, colour = _MARKS[finding.state]
        if sys.stdout.isatty():
            mark = f"\x1b[{colour}m{mark}\x1b[0m"
        print(f"{mark}  {escaped(finding.what)}: {escaped(finding.why)}")
        if finding.fix:
            print(f"      mend: {escaped(finding.fix)}")
    if not quiet:
        print("\nSandboxes can run here." if report.ok else "\nSandboxes cannot run here.")
    return 0 if report.ok else 1


VERBS = {"doctor": doctor_command}
