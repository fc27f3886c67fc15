"""The tree of errors: as drawn, with words that help, and whole in another process."""

from __future__ import annotations

import copy
import errno
import inspect
import json
import pickle
import re

import pytest

from novasandbox import errors
from novasandbox.core.hypervisor import SandboxState
from novasandbox.errors import (
    CommandFailed,
    CommandNotStarted,
    ContextLost,
    FileError,
    IllegalTransition,
    NovaError,
    OperationTimeout,
    OutputLimitExceeded,
    TemplateBuildFailed,
    from_details,
)
from novasandbox.guest.process import ExecResult

PUBLIC = {
    name: cls
    for name, cls in vars(errors).items()
    if inspect.isclass(cls) and issubclass(cls, NovaError) and not name.startswith("_")
}
PLAIN = sorted(name for name, cls in PUBLIC.items() if cls.__init__ is NovaError.__init__)


def drawn() -> dict[str, str]:
    """Each class of the drawing, with the one that it hangs from."""
    assert errors.__doc__ is not None
    found, branch = {}, "NovaError"
    for line in errors.__doc__.splitlines():
        names = re.sub(r"carries.*|also.*", "", line)
        if re.match(r"    [├└]── ", line):
            branch = re.findall(r"[A-Z]\w+", names)[0]
            found[branch] = "NovaError"
        elif re.match(r"    [│ ]   [├└]── ", line):
            found.update(dict.fromkeys(re.findall(r"[A-Z]\w+", names), branch))
    return found


def test_the_tree_is_as_it_is_drawn() -> None:
    picture = drawn()
    assert set(picture) == set(PUBLIC) - {"NovaError"}
    for name, parent in picture.items():
        assert issubclass(PUBLIC[name], PUBLIC[parent]), f"{name} hangs from {parent}"
        others = {p for p in picture.values() if p not in (parent, "NovaError", name)}
        assert not any(issubclass(PUBLIC[name], PUBLIC[other]) for other in others)


def every_error() -> list[NovaError]:
    """One of each class, with all that it carries."""
    words = {"why": "because", "fix": "Mend it.", "sandbox_id": "0123456789ab"}
    result = ExecResult(3, None, 0.5, b"out", b"err")
    special: list[NovaError] = [
        IllegalTransition(
            "cannot pause",
            current=SandboxState.PAUSED,
            required=(SandboxState.RUNNING, SandboxState.CREATING),
            sandbox_id="x",
        ),
        TemplateBuildFailed("no", step="apt", log="E: no", **words),
        CommandFailed("bad", result=result, sandbox_id="x"),
        CommandNotStarted("no", errno=errno.ENOENT, stage="exec", **words),
        OperationTimeout("late", stdout=b"caf\xc3\xa9", stderr=b"e", **words),
        ContextLost("lost", stdout=b"o", stderr=b"e", **words),
        OutputLimitExceeded("much", stdout=b"o", stderr=b"", **words),
        FileError("cannot read", errno=errno.EACCES, path="/f", **words),
    ]
    plain = [PUBLIC[name]("what", **words) for name in PLAIN]
    assert {type(error) for error in [*special, *plain]} == set(PUBLIC.values())
    return [*special, *plain]


def told(error: NovaError) -> dict[str, object]:
    """All that an error says."""
    found: dict[str, object] = {"type": type(error), "str": str(error), **error.details()}
    for name in ("errno", "strerror", "filename", "stage", "stdout_bytes", "step", "log"):
        found[name] = getattr(error, name, None)
    return found


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_is_whole_in_another_process(error: NovaError) -> None:
    assert told(from_details(json.loads(json.dumps(error.details())))) == told(error)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_an_error_can_be_pickled_and_copied(error: NovaError) -> None:
    assert told(pickle.loads(pickle.dumps(error))) == told(error)
    assert told(copy.copy(error)) == told(error)


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_half_an_error_from_another_process_is_still_one(name: str) -> None:
    if name != "IllegalTransition":
        error = from_details({"type": name, "what": "w"})
        assert type(error) is PUBLIC[name]
        assert "w" in str(error)
        assert error.details()["what"] == "w"


@pytest.mark.parametrize("name", ["os", "Nothing", "_WithOutput2", "", None])
def test_an_error_of_an_unknown_kind_is_a_nova_error(name: str | None) -> None:
    assert type(from_details({"type": name, "what": "w"})) is NovaError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (NovaError("it broke"), "it broke"),
        (NovaError("it broke", why="rust"), "it broke: rust"),
        (NovaError("it broke", why="rust.", fix="Oil it."), "it broke: rust. Oil it."),
        (NovaError("it broke", fix="Oil it.", sandbox_id="ab"), "[ab] it broke. Oil it."),
        (TemplateBuildFailed("no", log="line 1\nline 2"), "no\nline 1\nline 2"),
        (
            IllegalTransition(
                "cannot pause", current=SandboxState.PAUSED, required=(SandboxState.RUNNING,)
            ),
            "cannot pause: the sandbox is PAUSED, and this needs RUNNING",
        ),
    ],
)
def test_the_words_of_an_error(error: NovaError, text: str) -> None:
    assert str(error) == text


def test_errors_are_also_what_python_calls_them() -> None:
    timeout = OperationTimeout("late", stdout=b"so far \xff", stderr=b"x")
    assert isinstance(timeout, TimeoutError)
    assert (timeout.stdout, timeout.stderr) == ("so far \ufffd", "x")
    missing = FileError("cannot read", errno=errno.ENOENT, path=b"/\xff")
    assert isinstance(missing, OSError)
    assert (missing.errno, missing.filename) == (errno.ENOENT, b"/\xff")
    assert missing.strerror == "No such file or directory"


@pytest.mark.parametrize(
    ("stage", "number", "code"),
    [("exec", errno.ENOENT, 127), ("exec", errno.EACCES, 126), ("cwd", errno.ENOENT, 126)],
)
def test_a_command_that_never_ran_has_the_exit_code_of_a_shell(
    stage: str, number: int, code: int
) -> None:
    assert CommandNotStarted("no", errno=number, stage=stage).exit_code == code


@pytest.mark.parametrize(
    "data",
    [
        None,
        [1],
        {"type": "IllegalTransition", "current": "NOWHERE"},
        {"type": "IllegalTransition"},
        {"type": "CommandFailed", "exit_code": "many"},
        {"type": "FileError", "errno": 10**30},
        {"type": "FileError", "errno": [], "why": {"a": 1}},
        {"type": ["FileError"], "what": {}, "fix": 3, "sandbox_id": []},
    ],
)
def test_what_no_error_ever_said_is_an_error_nevertheless(data: object) -> None:
    error = from_details(data)
    assert isinstance(error, NovaError)
    assert str(error)
