"""`Contexts` without an event loop; each call is explained in `novasandbox.guest.contexts`."""

from __future__ import annotations

from collections.abc import Mapping

from novasandbox.guest import contexts as guest
from novasandbox.guest.contexts import Context
from novasandbox.guest.results import CodeResult, OnOutput
from novasandbox.sync.handle import Handle

_List = list  # `Contexts.list` hides the built-in inside its class.


class Contexts(Handle):
    """The contexts of a sandbox.

    Cells of one context run one after another, those of several side by side.
    """

    def __init__(self, contexts: guest.Contexts) -> None:
        """Not for users: see `Sandbox.contexts`."""
        super().__init__()
        self._contexts = contexts

    def create(self, cwd: str | None = None, env: Mapping[str, str] | None = None) -> Context:
        """A new context, with nothing defined.

        cwd: where it starts, the sandbox's folder unless given; a relative one starts there.
        env: added to the sandbox's environment. Raises CommandNotStarted where `cwd` is no
        folder, OperationFailed where there are as many as may be.
        """
        return self._call(lambda: self._contexts.create(cwd, env))

    def list(self) -> _List[Context]:
        """All contexts, oldest first; the default one is always there."""
        return self._call(self._contexts.list)

    def restart(self, context: Context | str | None = None) -> None:
        """End a context's process and begin with a new one; a cell that runs ends with it.

        context: the default one unless named. Raises ContextNotFound.
        """
        self._call(lambda: self._contexts.restart(context))

    def remove(self, context: Context | str) -> None:
        """End a context for good. Raises ContextNotFound; InvalidRequest for the default one."""
        self._call(lambda: self._contexts.remove(context))

    def run(
        self,
        code: str,
        *,
        context: Context | str | None = None,
        timeout: float | None = None,
        on_output: OnOutput | None = None,
    ) -> CodeResult:
        """Run a cell; see `Sandbox.run_code`."""
        return self._call(
            lambda: self._contexts.run(code, context=context, timeout=timeout, on_output=on_output)
        )
