"""Set up everything on a bare machine, and do nothing at once when all is there.

    setup.py env             the virtual environment with all development tools
    setup.py all             that, the system's packages, the guest agent and the default template
    setup.py run [PROGRAM …] all without the development tools; then run the Python program

Standard library only: it runs with the system's Python, before there is anything else.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import system
from steps import StepFailed, Steps

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
# Only a whole environment has this file: pip may be killed at any moment.
STATE = VENV / "nova-setup.json"
LOG = ROOT / "build" / "setup.log"
DEVELOPMENT = ["server", "dev"]
TEMPLATE = "debian-python"


def read_state() -> dict[str, Any] | None:
    """What was set up, or None where the environment is missing, foreign, half-made or moved."""
    try:
        state = json.loads(STATE.read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(state, dict) and state.get("root") == str(ROOT) and PYTHON.exists()
    return state if whole else None


def write_state(state: dict[str, Any]) -> None:
    """Replace the state file in one piece."""
    fresh = STATE.with_suffix(".new")
    fresh.write_text(json.dumps(state, indent=1))
    fresh.replace(STATE)


def hash_of(paths: Iterable[Path], *more: str) -> str:
    """One hash of the contents of files, those below folders included."""
    digest = hashlib.sha256("\0".join(more).encode())
    for path in paths:
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in below:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()


def pyproject() -> dict[str, Any]:
    """What pyproject.toml says."""
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def pip(*arguments: str) -> list[str]:
    """A pip command in the environment, with the machine's own pip configuration."""
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]


def ensure_environment(extras: list[str], steps: Steps) -> None:
    """The virtual environment with the package and its extras, remade where it is not whole."""
    state = read_state()
    project = pyproject()
    parts = [project["build-system"], project["project"], project["tool"]["hatch"]]
    key = hash_of([ROOT / "hatch_build.py"], json.dumps(parts))
    if state and state.get("packages") == key and set(extras) <= set(state["extras"]):
        return
    if state is None:
        if VENV.is_symlink() or VENV.exists():
            steps.say(f"{VENV.name} is half-made, moved, or not made here: making it anew")
            VENV.unlink() if VENV.is_symlink() else shutil.rmtree(VENV)
        steps.run("virtual environment", [sys.executable, "-m", "venv", str(VENV)])
    else:
        extras = sorted({*extras, *state["extras"]})
        STATE.unlink()
    _install_packages(extras, steps)
    write_state({"root": str(ROOT), "packages": key, "extras": extras})


def _install_packages(extras: list[str], steps: Steps) -> None:
    """Fetch first and install then, so that the time of each is known.

    The package itself is built without isolation: the compiler (100 MB) is in the environment.
    """
    wheels = VENV / "wheels"
    wanted = requirements(extras)
    unpack = pip("install", "--no-index", "--find-links", str(wheels))
    quiet = {"PIP_ROOT_USER_ACTION": "ignore"}
    steps.run(
        "fetch Python packages",
        pip("wheel", "--prefer-binary", "--wheel-dir", str(wheels), *wanted),
        download=True,
    )
    steps.run("install Python packages", [*unpack, *wanted], environment=quiet)
    shutil.rmtree(wheels)
    ensure_agent(steps)
    editable = pip("install", "--no-build-isolation", "--no-deps", "--editable", str(ROOT))
    steps.run("install NovaSandbox, editable", editable, environment=quiet)


def requirements(extras: list[str]) -> list[str]:
    """What the package, the extras and the build need, as pyproject.toml says it."""
    project = pyproject()
    optional = project["project"]["optional-dependencies"]
    listed = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    build = [line for line in optional["dev"] if line.startswith(("editables", "ziglang"))]
    return sorted({*listed, *build, *(line for name in extras for line in optional[name])})


def ensure_agent(steps: Steps) -> None:
    """The guest agent and the jail, compiled for this machine where their sources changed."""
    sys.path.insert(0, str(ROOT / "native"))
    import build as native

    if native.stale([native.host_arch()]):
        command = [str(PYTHON), str(ROOT / "native" / "build.py")]
        steps.run("compile the guest agent (the first time: its C library too)", command)


def ensure_template(steps: Steps) -> None:
    """The default template's kernel, initramfs and root image.

    The template's own cache decides what is stale; the key here only spares asking it each time.
    """
    source = ROOT / "src" / "novasandbox"
    home = os.environ.get("NOVA_HOME", "")
    inputs = [ROOT / "native", source / "images", source / "templates", source / "core"]
    key = hash_of(inputs, home, os.environ.get("NOVA_KERNEL", ""))
    state = read_state()
    assert state is not None
    if state.get("template") == key and Path(state["home"]).is_dir():
        return
    news = TemplateNews()
    command = [str(PYTHON), str(ROOT / "scripts" / "build_template.py"), TEMPLATE]
    steps.run(f"template {TEMPLATE}", command, reading=news)
    steps.downloads += news.fetched
    where = "from novasandbox.core.home import home; print(home())"
    write_state({**state, "template": key, "home": _output([str(PYTHON), "-c", where])})


class TemplateNews:
    """Reads what build_template.py tells; of what goes on at once, the largest part is shown."""

    def __init__(self) -> None:
        self.fetched = 0.0
        self._open: dict[str, tuple[int, int]] = {}

    def __call__(self, line: str) -> tuple[float | None, str]:
        """How far it is, and with what."""
        parts = line.split("\t")
        if len(parts) == 2 and parts[0] == "downloads":
            self.fetched = float(parts[1])
        if len(parts) != 3:
            return None, line
        step, done, total = parts[0], int(parts[1]), int(parts[2] or 0)
        self._open[step] = (done, total)
        if parts[2] and done == total:
            del self._open[step]
        if not self._open:
            return 1.0, step
        shown, (done, total) = max(self._open.items(), key=lambda item: item[1][1])
        return (done / total if total else 0.0), shown


def _output(command: list[str]) -> str:
    import subprocess

    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def alone(steps: Steps) -> Iterator[None]:
    """Hold the tree's lock: two set-ups at once would install over each other."""
    with (ROOT / "pyproject.toml").open() as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            steps.say("another set-up is at work here; waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def set_up(what: str, steps: Steps) -> None:
    """Do the steps that `what` (env, run or all) needs and that are not done."""
    system.check_python()
    wanted = [] if what == "env" else system.needs(tests=what == "all")
    with alone(steps):
        have_environment = read_state() is not None
        system.install(system.missing(wanted, venv=not have_environment), steps)
        ensure_environment([] if what == "run" else DEVELOPMENT, steps)
        if what != "env":
            ensure_agent(steps)
            ensure_template(steps)


def main(arguments: list[str]) -> int:
    """The command line."""
    if not arguments or arguments[0] not in ("env", "run", "all"):
        print(__doc__, file=sys.stderr)
        return 2
    what, *program = arguments
    steps = Steps(LOG)
    try:
        set_up(what, steps)
        if not program:
            if steps.count:
                steps.say(f"set up in {steps.summary()}")
            return 0
        if not steps.count:
            os.execv(PYTHON, [str(PYTHON), *program])
        code = steps.hand_over([str(PYTHON), *program])
        steps.say(f"\nset up and ran {program[0]} in {steps.summary()}")
        return code
    except StepFailed as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
