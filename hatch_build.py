"""The build hook: compiles the guest agent and the jail into the package.

A wheel carries both architectures, and its tag is `py3-none-any` all the same: the binaries are
static, need nothing of the host's Python or libc, and are data as far as the host is concerned.
The agent runs in a guest whatever the host is; a host that cannot run the jail never starts it.
An editable install compiles for this machine's architecture only.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

if TYPE_CHECKING:
    from types import ModuleType


def _load_build_module(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nova_native_build", root / "native" / "build.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{root} holds no native/build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


class NativeBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # generic for mypy only
    """Compile what is stale before hatchling collects the files."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """The compiler, only when there is something to compile.

        In pip's build isolation it is unpacked anew each time (100 MB, out of pip's cache after the
        first) and builds its libc anew, so `make setup` builds without isolation, with the compiler
        of the virtual environment.
        """
        if self.target_name != "wheel":
            return []
        native = _load_build_module(Path(self.root))
        return [native.ZIG_REQUIREMENT] if native.needs_compiler(native.ARCHES) else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile before the files are collected; `version` is `editable` or `standard`."""
        del build_data
        if self.target_name != "wheel":
            return
        native = _load_build_module(Path(self.root))
        arches = [native.host_arch()] if version == "editable" else native.ARCHES
        native.build(arches, say=self.app.display_info)
