"""What `doctor` reports of QEMU: the program, its accelerator, its jail."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from novasandbox.core.home import home
from novasandbox.core.hypervisor import Finding
from novasandbox.errors import ProviderUnavailable
from novasandbox.providers import accelerator, jail_check
from novasandbox.providers.accelerator import Verdict
from novasandbox.providers.qemu_program import Program, find_program

_NAMES = {"kvm": "KVM", "hvf": "HVF", "tcg": "emulation (TCG)"}


def findings() -> list[Finding]:
    """One finding for the program, one for the accelerator, and those of the jail.

    Takes some 50 ms; starts no machine.
    """
    try:
        # The caller may be in a loop: it waits in a thread that has none.
        with ThreadPoolExecutor(1) as pool:
            program = pool.submit(lambda: asyncio.run(find_program())).result()
    except ProviderUnavailable as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
        return [Finding("QEMU", "fail", why, error.fix)]
    return [
        Finding("QEMU", "ok", f"{program.version}, {program.path}"),
        _accelerator(verdict_for(program)),
        *_jail(),
    ]


def verdict_for(program: Program) -> Verdict:
    """What machines will run on, as far as it is known without starting one."""
    own = os.environ.get("NOVA_KERNEL")
    known = accelerator.remembered(program.version, home() / "cache" / "accelerator.json")
    return known or accelerator.candidate(Path(own) if own else None)


def _accelerator(verdict: Verdict) -> Finding:
    title = f"accelerator: {_NAMES.get(verdict.accelerator, verdict.accelerator)}"
    if verdict.accelerator == "tcg":
        why = verdict.reason.removeprefix("emulation (TCG): ")
        slow = "code in the guest runs some 10 times slower than on this host's CPU"
        return Finding(title, "warn", f"{why}; {slow}", verdict.fix)
    return Finding(title, "ok", verdict.reason, verdict.fix)


def _jail() -> list[Finding]:
    if sys.platform != "linux":
        return [Finding("jail", "warn", "QEMU is jailed on Linux only; here it runs as you do")]
    return jail_check.check()
