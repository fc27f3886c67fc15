"""`novasandbox.run`: a sandbox made, used and gone, in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from novasandbox.core.sandbox import Sandbox
from novasandbox.guest.process import ExecResult


async def run_async(
    code: str,
    *,
    template: str | None = None,
    interpreter: Sequence[str] = ("python3", "-"),
    env: Mapping[str, str] | None = None,
    timeout: float | None = 60.0,
    check: bool = False,
    **config: Any,
) -> ExecResult:
    """Run `code` in a sandbox of its own, which is gone when this returns.

    interpreter: the program that reads the code on its standard input; Python by default,
    `("sh",)` for shell. timeout: seconds for the code. config: as for `Sandbox.create`.

    Raises what `Sandbox.create` and `Sandbox.exec` raise.
    """
    async with Sandbox.create(template, **config) as sandbox:
        return await sandbox.exec(
            list(interpreter), stdin=code, env=env, timeout=timeout, check=check
        )


def run(code: str, **options: Any) -> ExecResult:
    """`run_async` for code without an event loop; inside one it uses a thread of its own.

    Example: `novasandbox.run("print(6*7)").stdout` gives `"42\\n"`.
    """
    from novasandbox.core.background import in_new_thread

    return in_new_thread(lambda: run_async(code, **options))
