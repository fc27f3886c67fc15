"""`Process` without an event loop; each call is explained in `novasandbox.guest.process`."""

from __future__ import annotations

from collections.abc import Iterator

from novasandbox.guest import process as guest
from novasandbox.guest.process import ExecResult, Output
from novasandbox.sync.handle import Handle


class Stdin(Handle):
    """A process's standard input."""

    def __init__(self, stdin: guest.Stdin) -> None:
        super().__init__()
        self._stdin = stdin

    def write(self, data: bytes | str) -> None:
        """Send all of `data`; waits while the process reads slowly.

        Raises BrokenPipeError when the process has ended.
        """
        self._call(lambda: self._stdin.write(data))

    def close(self) -> None:
        """Let the process see the end of its input."""
        self._call(self._stdin.close)


class Process(Handle):
    """A program in the guest. Iterate over it for its output, or `wait` for all of it.

    It lives on when this handle is dropped, and can be attached to again by its pid.
    """

    def __init__(self, process: guest.Process) -> None:
        super().__init__()
        self._process = process
        self.pid = process.pid
        self.command = process.command
        self.stdin = Stdin(process.stdin)

    def __repr__(self) -> str:
        return repr(self._process)

    def __iter__(self) -> Iterator[Output]:
        """Yield what the process prints until it ends. Bytes handed out here are not kept."""
        return self._each(self._process.__aiter__)

    def wait(self) -> ExecResult:
        """Wait for the end. The result holds the output that nobody has iterated over.

        Raises OperationTimeout (with the output so far), OutputLimitExceeded with
        `on_limit="error"`, SandboxFailed kinds when the sandbox is gone.
        """
        return self._call(self._process.wait)

    def signal(self, name: str | int, *, tree: bool = False) -> None:
        """Send a signal (`SIGTERM`, `term`, 15); with a PTY to its foreground group.

        tree: send it to every descendant too. Harmless when the process has ended.
        """
        self._call(lambda: self._process.signal(name, tree=tree))

    def kill(self) -> None:
        """End the process and every descendant, whatever they did to get away."""
        self._call(self._process.kill)

    def resize(self, rows: int, cols: int) -> None:
        """Tell the process's terminal its new size, in characters."""
        self._call(lambda: self._process.resize(rows, cols))

    def detach(self) -> None:
        """Let go of the handle: the process goes on, its latest output is kept for later."""
        self._call_plain(self._process.detach)

    def abandon(self) -> None:
        """End the process's tree without waiting."""
        self._call_plain(self._process.abandon)
