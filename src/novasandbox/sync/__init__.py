"""The same names as in `novasandbox`, for code without an event loop.

    from novasandbox.sync import Sandbox

    with Sandbox.create() as sandbox:
        print(sandbox.exec("ls -l | wc -l").stdout)

One thread in the background does the work, so that every call can be made from any thread,
also from one in which an event loop runs. Ctrl-C cancels the call and leaves nothing behind;
the end of the program ends the sandboxes that it still holds, unless they are detached.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from novasandbox.sync.contexts import Contexts as Contexts
    from novasandbox.sync.files import Files as Files
    from novasandbox.sync.files import GuestFile as GuestFile
    from novasandbox.sync.files import Watch as Watch
    from novasandbox.sync.pool import Pool as Pool
    from novasandbox.sync.process import Process as Process
    from novasandbox.sync.process import Stdin as Stdin
    from novasandbox.sync.sandbox import Sandbox as Sandbox
    from novasandbox.sync.templates import TemplateManager as TemplateManager

_HOMES = {
    "Contexts": "contexts",
    "Files": "files",
    "GuestFile": "files",
    "Pool": "pool",
    "Process": "process",
    "Sandbox": "sandbox",
    "Stdin": "process",
    "TemplateManager": "templates",
    "Watch": "files",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'novasandbox.sync' has no attribute {name!r}")
    value = getattr(import_module(f"novasandbox.sync.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
