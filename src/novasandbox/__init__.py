"""NovaSandbox: run code that nobody trusts in a microVM of its own.

    import novasandbox
    print(novasandbox.run("print(6*7)").stdout)

    async with novasandbox.Sandbox.create() as sandbox:
        result = await sandbox.exec("ls -l | wc -l")

`novasandbox.sync` has the same names for code without an event loop. Everything here is
loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from novasandbox.core.doctor import doctor as doctor
    from novasandbox.core.doctor import doctor_async as doctor_async
    from novasandbox.core.events import Event as Event
    from novasandbox.core.hypervisor import BaseHypervisor as BaseHypervisor
    from novasandbox.core.hypervisor import SandboxConfig as SandboxConfig
    from novasandbox.core.hypervisor import SandboxState as SandboxState
    from novasandbox.core.info import Logs as Logs
    from novasandbox.core.info import Metrics as Metrics
    from novasandbox.core.info import SandboxInfo as SandboxInfo
    from novasandbox.core.oneshot import run as run
    from novasandbox.core.oneshot import run_async as run_async
    from novasandbox.core.pool import Pool as Pool
    from novasandbox.core.sandbox import Sandbox as Sandbox
    from novasandbox.core.template_manager import TemplateManager as TemplateManager
    from novasandbox.errors import NovaError as NovaError
    from novasandbox.guest.contexts import Context as Context
    from novasandbox.guest.contexts import Contexts as Contexts
    from novasandbox.guest.files import Change as Change
    from novasandbox.guest.files import FileEvent as FileEvent
    from novasandbox.guest.files import FileInfo as FileInfo
    from novasandbox.guest.files import Lost as Lost
    from novasandbox.guest.launch import PtySize as PtySize
    from novasandbox.guest.process import ExecResult as ExecResult
    from novasandbox.guest.process import Output as Output
    from novasandbox.guest.process import Process as Process
    from novasandbox.guest.process import ProcessInfo as ProcessInfo
    from novasandbox.guest.results import CodeError as CodeError
    from novasandbox.guest.results import CodeResult as CodeResult
    from novasandbox.guest.transfer import Refused as Refused

__version__ = "0.1.0"

_HOMES = {
    "BaseHypervisor": "core.hypervisor",
    "Change": "guest.files",
    "CodeError": "guest.results",
    "CodeResult": "guest.results",
    "Context": "guest.contexts",
    "Contexts": "guest.contexts",
    "Event": "core.events",
    "ExecResult": "guest.process",
    "FileEvent": "guest.files",
    "FileInfo": "guest.files",
    "Logs": "core.info",
    "Lost": "guest.files",
    "Metrics": "core.info",
    "NovaError": "errors",
    "Output": "guest.process",
    "Pool": "core.pool",
    "Process": "guest.process",
    "ProcessInfo": "guest.process",
    "PtySize": "guest.launch",
    "Refused": "guest.transfer",
    "Sandbox": "core.sandbox",
    "SandboxConfig": "core.hypervisor",
    "SandboxInfo": "core.info",
    "SandboxState": "core.hypervisor",
    "TemplateManager": "core.template_manager",
    "doctor": "core.doctor",
    "doctor_async": "core.doctor",
    "run": "core.oneshot",
    "run_async": "core.oneshot",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'novasandbox' has no attribute {name!r}")
    value = getattr(import_module(f"novasandbox.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
