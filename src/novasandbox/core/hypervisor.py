"""The contract that every provider fulfils, and the data it is spoken in.

A provider turns a `MachineSpec` into a running `Machine`: a process, a byte channel
to the guest's agent, and a few verbs. It knows nothing of sandboxes or templates.
"""

from __future__ import annotations

import abc
import asyncio
import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from novasandbox.errors import IllegalTransition, InvalidConfig

DEFAULT_TEMPLATE = "debian-python"
DEFAULT_TIMEOUT = 300.0
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}")


class SandboxState(enum.Enum):
    """Where a sandbox is in its life."""

    CREATING = "creating"
    """Its machine is being made; it takes no commands yet."""
    RUNNING = "running"
    """Its vCPUs run and its agent answers."""
    PAUSED = "paused"
    """Its vCPUs stand still; memory is kept."""
    HIBERNATED = "hibernated"
    """It lies on disk and has no process."""
    STOPPED = "stopped"
    """It was ended on purpose, or its time-to-live was over."""
    FAILED = "failed"
    """It ended by itself; the reason is kept."""

    @property
    def ended(self) -> bool:
        """Whether nothing follows this state."""
        return not _NEXT[self]


_NEXT: Mapping[SandboxState, frozenset[SandboxState]] = {
    SandboxState.CREATING: frozenset(
        {SandboxState.RUNNING, SandboxState.STOPPED, SandboxState.FAILED}
    ),
    SandboxState.RUNNING: frozenset(
        {
            SandboxState.PAUSED,
            SandboxState.HIBERNATED,
            SandboxState.STOPPED,
            SandboxState.FAILED,
        }
    ),
    SandboxState.PAUSED: frozenset(
        {
            SandboxState.RUNNING,
            SandboxState.HIBERNATED,
            SandboxState.STOPPED,
            SandboxState.FAILED,
        }
    ),
    SandboxState.HIBERNATED: frozenset(
        {SandboxState.RUNNING, SandboxState.STOPPED, SandboxState.FAILED}
    ),
    SandboxState.STOPPED: frozenset(),
    SandboxState.FAILED: frozenset(),
}


def check_transition(current: SandboxState, target: SandboxState, sandbox_id: str) -> None:
    """Raise IllegalTransition unless `target` may follow `current`."""
    if target in _NEXT[current]:
        return
    required = tuple(state for state, after in _NEXT.items() if target in after)
    raise IllegalTransition(
        f"the sandbox cannot become {target.name}",
        current=current,
        required=required,
        sandbox_id=sandbox_id,
    )


def require_state(
    current: SandboxState, required: tuple[SandboxState, ...], verb: str, sandbox_id: str
) -> None:
    """Raise IllegalTransition unless `current` is one of `required`."""
    if current not in required:
        raise IllegalTransition(
            f"cannot {verb}", current=current, required=required, sandbox_id=sandbox_id
        )


OnTimeout = Literal["kill", "pause", "hibernate"]


@dataclass(frozen=True, slots=True)
class SandboxConfig:
    """What a sandbox shall be. Checked when made: an illegal one cannot exist.

    template: a template's name; image, snapshot: other sources, at most one of the three.
    vcpus: 1 to 64. memory_mib: MiB of guest memory, from 64. disk_mib: MiB of the writable
    overlay, from 16. user, cwd, env: what commands run as, in, and with, unless the call
    says otherwise. metadata: labels of your own, to find it by. name: unique among the
    living. timeout: its life in seconds; None: no end. on_timeout: what happens then: `kill`,
    or `pause` or `hibernate`, until the next call wakes it for as long again. idle_timeout:
    seconds without a call, an open stream or a process that computes, after which on_idle
    happens; None: never, or with snapshot both as they were there; infinite: never. provider:
    `auto` or a provider's name. kernel: a guest kernel's path; None: that of NOVA_KERNEL,
    else Debian's. strict: refuse a host that cannot give every part of the jail; None: as
    NOVA_STRICT_JAIL=1 says. detach: it outlives its maker.
    """

    template: str | None = None
    image: str | None = None
    snapshot: str | None = None
    vcpus: int = 1
    memory_mib: int = 256
    disk_mib: int = 2048
    user: str | None = None
    cwd: str | None = None
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    timeout: float | None = DEFAULT_TIMEOUT
    on_timeout: OnTimeout = "kill"
    idle_timeout: float | None = None
    on_idle: OnTimeout = "hibernate"
    network: None = None
    provider: str = "auto"
    kernel: str | None = None
    strict: bool | None = None
    cold: bool = False
    detach: bool = False

    def __post_init__(self) -> None:
        sources = [s for s in (self.template, self.image, self.snapshot) if s is not None]
        if len(sources) > 1:
            raise InvalidConfig(
                "more than one source was given",
                fix=f"Give one of template, image and snapshot, or none for {DEFAULT_TEMPLATE!r}.",
            )
        _check_number("vcpus", self.vcpus, 1, 64, "")
        _check_number("memory_mib", self.memory_mib, 64, 1 << 20, " MiB")
        _check_number("disk_mib", self.disk_mib, 16, 1 << 24, " MiB")
        _check_timeout("timeout", self.timeout)
        _check_timeout("idle_timeout", self.idle_timeout)
        _check_texts(self)
        self._refuse_what_is_not_there()

    def _refuse_what_is_not_there(self) -> None:
        missing = {
            "image": self.image is not None,
            "network": self.network is not None,
        }
        for what, asked in missing.items():
            if asked:
                raise InvalidConfig(
                    f"{what} is not supported by this version",
                    fix="Leave it out; the changelog says when it comes.",
                )


def _check_number(name: str, value: Any, low: int, high: int, unit: str) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return
    raise InvalidConfig(
        f"{name}={value!r}", why=f"it must be a whole number from {low} to {high}{unit}"
    )


def _check_timeout(name: str, timeout: Any) -> None:
    if timeout is None:
        return
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise InvalidConfig(
            f"{name}={timeout!r}",
            why="it must be seconds above 0, or None for no end",
            fix=f"Give seconds, as {name}=60, or leave it out.",
        )


def _check_texts(config: SandboxConfig) -> None:
    for name, wish in (("on_timeout", config.on_timeout), ("on_idle", config.on_idle)):
        if wish not in get_args(OnTimeout):
            raise InvalidConfig(
                f"{name}={wish!r}",
                why=f"it must be one of {', '.join(get_args(OnTimeout))}",
                fix=f"Choose one, as {name}='hibernate', or leave it out.",
            )
    if config.name is not None and not _NAME.fullmatch(config.name):
        raise InvalidConfig(
            f"name={config.name!r}",
            why="a name has 1 to 63 letters, digits, '.', '_' or '-', and starts with a "
            "letter or digit",
        )
    _check_pairs("env", config.env)
    _check_pairs("metadata", config.metadata)
    for what, text in (("user", config.user), ("cwd", config.cwd)):
        if text is not None and (not text or "\0" in text):
            raise InvalidConfig(f"{what}={text!r}")
    if config.cwd is not None and not config.cwd.startswith("/"):
        raise InvalidConfig(f"cwd={config.cwd!r}", why="it must be an absolute path")


def _check_pairs(what: str, pairs: Mapping[Any, Any]) -> None:
    for key, value in pairs.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidConfig(f"{what} holds something that is not text: {key!r}")
        if not key or "\0" in key + value or (what == "env" and "=" in key):
            raise InvalidConfig(f"{key!r} cannot be a key of {what}")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do on this host."""

    snapshot: bool = False
    fork: bool = False
    live_fork: bool = False
    network_device: bool = False
    jail: bool = False


@dataclass(frozen=True, slots=True)
class Probe:
    """Whether a provider can run here.

    accelerator: `kvm`, `hvf`, `tcg`. reason: why this and not better, a sentence.
    fix: what would make it better or possible at all. version: of the hypervisor.
    """

    usable: bool
    reason: str
    accelerator: str | None = None
    fix: str | None = None
    version: str | None = None
    capabilities: Capabilities = field(default_factory=Capabilities)


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything a provider needs to make one machine.

    run_dir: the machine's own directory, for its sockets and logs.
    kernel, initramfs, rootfs: files shared by many machines, never written.
    scratch_mib: MiB of the machine's own disk. scratch_base: an empty, formatted disk of
    that size, shared. layers: what was written on top of it by others, the oldest first,
    shared and never written. disk: the layer on top, the machine's own; it is made where it
    is missing, and its name is like that of no other layer.
    owner_fd: a descriptor that reads end-of-file when the owner dies; the machine then
    ends within a second. None: it lives until it is stopped.
    hold_fds: descriptors that must stay open as long as the machine lives (locks).
    strict: refuse a host that cannot give every part of the jail.
    """

    id: str
    run_dir: Path
    kernel: Path
    initramfs: Path
    rootfs: Path
    scratch_base: Path
    scratch_mib: int
    disk: Path
    vcpus: int
    memory_mib: int
    layers: tuple[Path, ...] = ()
    owner_fd: int | None = None
    hold_fds: tuple[int, ...] = ()
    strict: bool = False


STATE, MEMORY = "state", "memory"
"""Names of the files that `Machine.save` writes."""


@dataclass(frozen=True, slots=True)
class MachineMetrics:
    """What a machine's process costs the host.

    cpu_seconds: user and system. rss_bytes, pss_bytes: resident memory, and the same with
    shared pages divided among their users (None where it cannot be read).
    read_bytes, written_bytes: to and from storage.
    """

    cpu_seconds: float
    rss_bytes: int
    pss_bytes: int | None
    read_bytes: int | None
    written_bytes: int | None


class Machine(abc.ABC):
    """A running machine. The one who holds it must `kill` or `stop` it, or let it go.

    pid, pid_started: the hypervisor's process, and when it started (so that a number
    that was reused is not mistaken for it), in clock ticks since the host's boot.
    """

    accelerator: str
    pid: int
    pid_started: float

    @abc.abstractmethod
    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Connect `protocol` to the guest's agent. Raises OSError where nobody listens."""

    @abc.abstractmethod
    async def pause(self) -> None:
        """Stop the vCPUs; returns when they stand still. Raises VmmCrashed."""

    @abc.abstractmethod
    async def resume(self) -> None:
        """Let the vCPUs run. Raises VmmCrashed."""

    @abc.abstractmethod
    async def save(self, folder: Path) -> None:
        """Write what the paused machine is, apart from its disk, into files of `folder`.

        STATE is always among them. A machine that was booted writes all its memory, to
        MEMORY; one that was restored puts what has changed since into STATE, and whoever
        restores it again needs the MEMORY that it came from.

        Raises VmmCrashed, OperationFailed, OSError (the disk is full), and ProviderUnavailable
        where this host forbids it. The machine is as it was.
        """

    @abc.abstractmethod
    async def ready_layer(self, layer: Path) -> None:
        """Make the empty file `layer` for `freeze_disk`, as far as that can be before a pause.

        `disk_layers` closes one that is not laid on after all; the file is the caller's to
        remove. Raises VmmCrashed, OperationFailed, OSError.
        """

    @abc.abstractmethod
    async def freeze_disk(self, layer: Path) -> None:
        """Lay the new layer that was made ready last on the paused machine's disk.

        What the machine wrote before is written no more, by nobody, and may be shared. Takes
        the same time however much that is. Raises VmmCrashed, OperationFailed, OSError; then
        `disk_layers` says whether it was done.
        """

    @abc.abstractmethod
    async def disk_layers(self) -> tuple[str, ...]:
        """The names, without their suffix, of the layers on which the machine's disk stands.

        The one that it writes is the last, those below it come in no order. A merge that is
        under way is called off first, also an earlier holder's. Raises VmmCrashed,
        OperationFailed.
        """

    @abc.abstractmethod
    async def merge_disk(self, onto: str | None, speed: int | None = None) -> None:
        """Copy what lies between the layer `onto` and the machine's own into the latter.

        The disk then stands on `onto`; of what lies in it or deeper nothing is copied. onto: a
        name as `disk_layers` gives it; None: on nothing but the scratch base. speed: bytes a
        second at most; None: no limit. Meanwhile the machine runs on, and no layer is written
        but its own; killed at any moment, that one holds over the layers of before what the
        guest wrote.

        When this returns or raises, cancelled too, nothing is copied any more, and
        `disk_layers` tells what the disk stands on. Raises OperationFailed (also where the
        host's disk is full), VmmCrashed.
        """

    @abc.abstractmethod
    async def wait(self) -> str:
        """Wait until the process has ended; the reason, one sentence."""

    @abc.abstractmethod
    async def kill(self) -> None:
        """End the process at once and give back what it held. Harmless when repeated."""

    @abc.abstractmethod
    def outlive_owner(self) -> None:
        """Let the machine live when the owner of its specification ends."""

    @abc.abstractmethod
    async def let_go(self) -> None:
        """Close our connections to the machine, which lives on."""

    @abc.abstractmethod
    async def metrics(self) -> MachineMetrics:
        """What the process costs the host. Raises VmmCrashed when it is gone."""

    async def cpu_seconds(self) -> float:
        """User and system time of the process, cheap to ask. Raises VmmCrashed when it is gone."""
        return (await self.metrics()).cpu_seconds

    @abc.abstractmethod
    def console(self) -> bytes:
        """The last 64 to 128 KiB that the guest wrote to its console."""

    @abc.abstractmethod
    def record(self) -> dict[str, Any]:
        """What `BaseHypervisor.adopt` needs to find this machine again, as JSON data."""


class BaseHypervisor(abc.ABC):
    """A way to run machines on this host."""

    name: str

    @abc.abstractmethod
    async def probe(self) -> Probe:
        """Whether and how machines can run here; quick after the first time."""

    @abc.abstractmethod
    async def boot(self, spec: MachineSpec) -> Machine:
        """Start a machine from its kernel; returns as soon as its process runs.

        Raises ProviderUnavailable, BootFailed, HostResourceExhausted. Whatever goes wrong,
        nothing is left behind.
        """

    @abc.abstractmethod
    async def restore(self, spec: MachineSpec, state: Path, memory: Path | None) -> Machine:
        """Start a machine from what `Machine.save` wrote of another; it runs at once.

        spec: like the other's but for its names, and with the layers that were frozen when it
        was saved. memory: the file that the other's memory is to be completed from; None when
        it had none. Both files are shared and never written.

        Raises ProviderUnavailable, BootFailed, HostResourceExhausted. Whatever goes wrong,
        nothing is left behind. A state that does not fit ends the machine soon.
        """

    @abc.abstractmethod
    async def signature(self, kernel: Path, vcpus: int, memory_mib: int) -> Mapping[str, Any]:
        """What a saved machine depends on, as JSON data: where it differs, it cannot be restored.

        memory_mib: MiB. Raises ProviderUnavailable.
        """

    @abc.abstractmethod
    async def adopt(self, run_dir: Path, record: Mapping[str, Any]) -> Machine:
        """Take over a machine that an earlier holder left running.

        Raises VmmCrashed when it no longer runs.
        """

    @abc.abstractmethod
    def findings(self) -> list[Finding]:
        """What `doctor` reports of this provider."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`.

    state: `ok`; `warn`, something is weaker or slower than it could be; `fail`, something
    is missing without which sandboxes cannot run. fix: the exact command that mends it.
    """

    what: str
    state: Literal["ok", "warn", "fail"]
    why: str
    fix: str | None = None
