"""Every error that NovaSandbox raises, sorted by what the caller should do.

    NovaError
    ├── InvalidRequest          your mistake: change the call
    │   ├── InvalidConfig · TemplateNotFound · SandboxNotFound · NameTaken
    │   ├── ProcessNotFound · ContextNotFound · PathError · Unauthorized
    │   └── IllegalTransition   carries both states
    ├── Unavailable             try again, or mend the host
    │   ├── ProviderUnavailable · CapacityExceeded · QuotaExceeded · RateLimited
    │   ├── HostResourceExhausted · DownloadFailed
    │   └── TemplateBuildFailed carries the step and its log
    ├── SandboxFailed           the sandbox is gone, and here is why
    │   ├── SandboxExpired · BootFailed · GuestPanicked · VmmCrashed
    │   └── GuestUnreachable · ProtocolViolation
    ├── OperationFailed         the sandbox lives on
    │   ├── CommandFailed · CommandNotStarted · OutputLimitExceeded
    │   ├── OperationTimeout    also a TimeoutError; carries the output so far
    │   ├── ContextLost         a context of `run_code` ended, and its state with it
    │   ├── FileError           also an OSError, with errno
    │   └── SnapshotInvalid · PolicyDenied
    └── OutcomeUnknown          it may have run: look before you repeat it

Cancellation is never one of them: `asyncio.CancelledError` passes through.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from novasandbox.core.hypervisor import SandboxState
    from novasandbox.guest.process import ExecResult

# Of output and logs, in the errors that go to other processes.
_MOST_TEXT = 4_000


class NovaError(Exception):
    """The root of the tree.

    what: what happened, one sentence without a full stop.
    why: the reason, where it is known.
    fix: what the reader can do about it, an exact command where there is one.
    sandbox_id: the sandbox that it happened to, if any.
    """

    def __init__(
        self,
        what: str,
        *,
        why: str | None = None,
        fix: str | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        self.what = what
        self.why = why
        self.fix = fix
        self.sandbox_id = sandbox_id
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what if self.why is None else f"{self.what}: {self.why}"
        if self.fix:
            text = f"{text.rstrip('.')}. {self.fix}"
        return f"[{self.sandbox_id}] {text}" if self.sandbox_id else text

    def details(self) -> dict[str, Any]:
        """The error as plain data, for `--json` and for other processes."""
        return {
            "type": type(self).__name__,
            "what": self.what,
            "why": self.why,
            "fix": self.fix,
            "sandbox_id": self.sandbox_id,
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over what `details` of this class gave beyond those of NovaError."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The inherited one calls the class with `args`, and ours take more than those.
        return _bare, (type(self), self.args), self.__dict__


class InvalidRequest(NovaError):
    """The call itself is wrong; repeating it unchanged cannot work."""


class InvalidConfig(InvalidRequest):
    """A setting has an illegal value, or two settings exclude each other."""


class TemplateNotFound(InvalidRequest):
    """No template of that name; `fix` names the nearest ones."""


class SandboxNotFound(InvalidRequest):
    """No sandbox has that id or name, or it has ended."""


class ProcessNotFound(InvalidRequest):
    """No process of that pid was started in this sandbox, or it was released."""


class ContextNotFound(InvalidRequest):
    """No context of that id is in this sandbox, or it was removed."""


class NameTaken(InvalidRequest):
    """Another living sandbox has this name."""


class PathError(InvalidRequest):
    """A path that no guest could have: empty, with a NUL byte, or too long."""


class Unauthorized(InvalidRequest):
    """The credentials are missing, wrong, or not enough."""


class IllegalTransition(InvalidRequest):
    """The sandbox is in a state in which this cannot be done.

    current, required: the state found, and the states in which the call is legal.
    """

    def __init__(
        self,
        what: str,
        *,
        current: SandboxState,
        required: tuple[SandboxState, ...],
        sandbox_id: str | None = None,
    ) -> None:
        self.current = current
        self.required = required
        wanted = " or ".join(state.name for state in required)
        super().__init__(
            what,
            why=f"the sandbox is {current.name}, and this needs {wanted}",
            sandbox_id=sandbox_id,
        )

    def details(self) -> dict[str, Any]:
        """The error as plain data, the states by their names."""
        states = {"current": self.current.name, "required": [s.name for s in self.required]}
        return super().details() | states

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over the states."""
        from novasandbox.core.hypervisor import SandboxState

        self.current = SandboxState[data["current"]]
        self.required = tuple(SandboxState[name] for name in data["required"])


class Unavailable(NovaError):
    """Nothing is wrong with the call; the host cannot serve it now."""


class ProviderUnavailable(Unavailable):
    """No hypervisor here can run this; `fix` says what to install or allow."""


class CapacityExceeded(Unavailable):
    """The host is full."""


class QuotaExceeded(Unavailable):
    """The caller has used up what it may use."""


class RateLimited(Unavailable):
    """Too many calls in too short a time."""


class HostResourceExhausted(Unavailable):
    """The host ran out of disk, memory, descriptors, processes or ids."""


class DownloadFailed(Unavailable):
    """Something could not be fetched, or was not what its checksum promised."""


class TemplateBuildFailed(Unavailable):
    """A template could not be built.

    step: the step that failed. log: the last lines of what it printed.
    """

    def __init__(
        self,
        what: str,
        *,
        step: str = "",
        log: str = "",
        why: str | None = None,
        fix: str | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        self.step = step
        self.log = log
        super().__init__(what, why=why, fix=fix, sandbox_id=sandbox_id)

    def __str__(self) -> str:
        return f"{super().__str__()}\n{self.log}" if self.log else super().__str__()

    def details(self) -> dict[str, Any]:
        """The error as plain data, with the step and the end of its log."""
        return super().details() | {"step": self.step, "log": self.log[-_MOST_TEXT:]}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over the step and the log."""
        self.step = str(data.get("step", ""))
        self.log = str(data.get("log", ""))


class SandboxFailed(NovaError):
    """The sandbox is gone and will not come back; make a new one."""


class SandboxExpired(SandboxFailed):
    """Its time-to-live is over."""


class BootFailed(SandboxFailed):
    """The machine started but never became usable."""


class GuestPanicked(SandboxFailed):
    """The guest's kernel panicked; `why` holds its last words."""


class VmmCrashed(SandboxFailed):
    """The hypervisor's process ended, or was killed."""


class GuestUnreachable(SandboxFailed):
    """The guest no longer answers."""


class ProtocolViolation(SandboxFailed):
    """The guest sent bytes that its protocol does not allow."""


class OperationFailed(NovaError):
    """This one operation failed; the sandbox lives on."""


class CommandFailed(OperationFailed):
    """A command with `check=True` ended with a code other than 0; `result` has all of it."""

    def __init__(self, what: str, *, result: ExecResult, sandbox_id: str | None = None) -> None:
        self.result = result
        super().__init__(what, why=result.stderr.strip()[-500:] or None, sandbox_id=sandbox_id)

    def details(self) -> dict[str, Any]:
        """The error as plain data, with how the command ended and the end of its output."""
        return super().details() | {
            "exit_code": self.result.exit_code,
            "signal": self.result.signal,
            "stdout": self.result.stdout[-_MOST_TEXT:],
            "stderr": self.result.stderr[-_MOST_TEXT:],
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over the result."""
        from novasandbox.guest.process import ExecResult

        self.result = ExecResult(
            exit_code=int(data.get("exit_code", 1)),
            signal=data.get("signal"),
            stdout_bytes=str(data.get("stdout", "")).encode("utf-8", "replace"),
            stderr_bytes=str(data.get("stderr", "")).encode("utf-8", "replace"),
        )


class CommandNotStarted(OperationFailed):
    """The program never ran: missing, not executable, no such folder or user.

    errno: the guest's error number. stage: `user`, `cwd`, `fork` or `exec`.
    exit_code: what a shell would give: 126 (found, cannot run) or 127 (not found).
    """

    def __init__(
        self,
        what: str,
        *,
        errno: int,
        stage: str,
        why: str | None = None,
        fix: str | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        self.errno = errno
        self.stage = stage
        super().__init__(what, why=why or os.strerror(errno), fix=fix, sandbox_id=sandbox_id)

    @property
    def exit_code(self) -> int:
        """127 where the program was not found, else 126."""
        from errno import ENOENT

        return 127 if self.stage == "exec" and self.errno == ENOENT else 126

    def details(self) -> dict[str, Any]:
        """The error as plain data, with errno and stage."""
        return super().details() | {"errno": self.errno, "stage": self.stage}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over errno and stage."""
        self.errno = int(data.get("errno", 0))
        self.stage = str(data.get("stage", "exec"))


class _WithOutput(OperationFailed):
    """Shared by the errors that end a command early: what it had printed until then."""

    def __init__(
        self,
        what: str,
        *,
        stdout: bytes = b"",
        stderr: bytes = b"",
        why: str | None = None,
        fix: str | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        self.stdout_bytes = stdout
        self.stderr_bytes = stderr
        super().__init__(what, why=why, fix=fix, sandbox_id=sandbox_id)

    @property
    def stdout(self) -> str:
        """What was printed so far, as text."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """What was printed on standard error so far, as text."""
        return self.stderr_bytes.decode("utf-8", "replace")

    def details(self) -> dict[str, Any]:
        """The error as plain data, with the end of the output."""
        return super().details() | {
            "stdout": self.stdout[-_MOST_TEXT:],
            "stderr": self.stderr[-_MOST_TEXT:],
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over the output."""
        self.stdout_bytes = str(data.get("stdout", "")).encode("utf-8", "replace")
        self.stderr_bytes = str(data.get("stderr", "")).encode("utf-8", "replace")


class OperationTimeout(_WithOutput, TimeoutError):
    """The operation took longer than it was given.

    A command's process tree was ended, a cell was interrupted; `why` says so where its context
    had to be ended with it.
    """


class ContextLost(_WithOutput):
    """A context's process ended, by its own code or otherwise: what its cells defined is gone.

    `why` names the cause, and whether the cell was run. The context was made anew.
    """


class OutputLimitExceeded(_WithOutput):
    """A command printed more than `output_limit` with `on_limit="error"`; it was ended."""


class FileError(OperationFailed, OSError):
    """A file operation in the guest failed; `errno`, `strerror` and `filename` as in OSError."""

    def __init__(
        self,
        what: str,
        *,
        errno: int,
        path: str | bytes,
        why: str | None = None,
        fix: str | None = None,
        sandbox_id: str | None = None,
    ) -> None:
        NovaError.__init__(
            self, what, why=why or os.strerror(errno), fix=fix, sandbox_id=sandbox_id
        )
        self._take(errno, path)

    def _take(self, errno: int, path: str | bytes) -> None:
        self.errno = errno
        self.strerror = os.strerror(errno)
        self.filename = path

    def details(self) -> dict[str, Any]:
        """The error as plain data, with errno and the path."""
        return super().details() | {"errno": self.errno, "path": os.fsdecode(self.filename)}

    def restore(self, data: Mapping[str, Any]) -> None:
        """Take over errno and the path."""
        self._take(int(data.get("errno", 0)), str(data.get("path", "")))

    def __reduce__(self) -> tuple[Any, ...]:
        # These three are no part of `__dict__` in an OSError.
        own = {"errno": self.errno, "strerror": self.strerror, "filename": self.filename}
        return _bare, (type(self), self.args), self.__dict__ | own


class SnapshotInvalid(OperationFailed):
    """The snapshot is damaged, or was made on a host that this one does not match."""


class PolicyDenied(OperationFailed):
    """The sandbox's policy does not allow this."""


class OutcomeUnknown(NovaError):
    """The connection was lost at a moment when the operation may or may not have run."""


def from_details(data: object) -> NovaError:
    """The error that `details` gave in another process.

    An unknown type gives a NovaError, and so does data that `details` never gave.
    """
    if not isinstance(data, dict):
        return NovaError("another process told an error that is none", why=repr(data)[:200])
    found = globals().get(str(data.get("type")))
    cls = found if isinstance(found, type) and issubclass(found, NovaError) else NovaError
    try:
        return _restored(cls, data)
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError):
        return _restored(NovaError, data)


def _restored(cls: type[NovaError], data: dict[str, Any]) -> NovaError:
    error = cls.__new__(cls)
    why, fix, sandbox_id = (
        None if data.get(key) is None else str(data[key]) for key in ("why", "fix", "sandbox_id")
    )
    NovaError.__init__(error, str(data.get("what")), why=why, fix=fix, sandbox_id=sandbox_id)
    error.restore(data)
    return error


def _bare(cls: type[NovaError], arguments: tuple[Any, ...]) -> NovaError:
    """An error without its attributes, for copies and pickles."""
    error = cls.__new__(cls)
    error.args = arguments
    return error
