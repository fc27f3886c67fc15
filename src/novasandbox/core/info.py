"""What users are shown of a sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from novasandbox.core.hypervisor import DEFAULT_TEMPLATE, SandboxState
from novasandbox.core.registry import Record
from novasandbox.guest.client import GuestMetrics


@dataclass(frozen=True, slots=True)
class SandboxInfo:
    """A sandbox at one moment.

    created, deadline: seconds since the epoch; deadline None: no end. env: the names of its
    environment variables, never their values. ports: guest ports and where they are here.
    on_timeout, idle_timeout, on_idle: as it was made. snapshot: the id of the one that it came
    from, went back to, or took last; it may have been removed since.
    """

    id: str
    name: str | None
    state: SandboxState
    template: str
    provider: str | None
    accelerator: str | None
    vcpus: int
    memory_mib: int
    disk_mib: int
    created: float
    deadline: float | None
    detached: bool
    pid: int | None
    env: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    ports: Mapping[int, str] = field(default_factory=dict)
    on_timeout: str = "kill"
    idle_timeout: float | None = None
    on_idle: str = "hibernate"
    snapshot: str | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a sandbox uses: `guest`, as seen inside; `machine`, what it costs the host.

    machine holds `cpu_seconds`, `rss_bytes`, `pss_bytes`, `read_bytes`, `written_bytes`;
    None where the host does not say.
    """

    guest: GuestMetrics
    machine: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Logs:
    """console: the end of what the guest wrote to its console, the agent's words among it.
    machine: what the hypervisor said."""

    console: str
    machine: str


def info_of(record: Record) -> SandboxInfo:
    """A sandbox as its record has it."""
    config = record.config
    machine = record.machine or {}
    return SandboxInfo(
        id=record.id,
        name=record.name,
        state=record.state,
        template=str(
            (record.ground or {}).get("template") or config["template"] or DEFAULT_TEMPLATE
        ),
        provider=record.provider,
        accelerator=record.accelerator,
        vcpus=config["vcpus"],
        memory_mib=config["memory_mib"],
        disk_mib=config["disk_mib"],
        created=record.created,
        deadline=record.deadline,
        detached=bool(config.get("detach")),
        pid=machine.get("pid"),
        env=tuple(config["env"]),
        metadata=dict(config["metadata"]),
        ports={int(p): f"127.0.0.1:{host}" for p, host in record.ports.items()},
        on_timeout=str(config.get("on_timeout", "kill")),
        idle_timeout=config.get("idle_timeout"),
        on_idle=str(config.get("on_idle", "hibernate")),
        snapshot=record.origin,
    )
