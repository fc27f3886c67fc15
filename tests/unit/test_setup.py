"""Set-up leaves alone what is whole, makes anew what is not, and says what to do."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import setup
import steps
import system
from steps import StepFailed, Steps

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a whole virtual environment looks like to the set-up."""
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "VENV", venv)
    monkeypatch.setattr(setup, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(setup, "STATE", venv / "nova-setup.json")
    setup.write_state({"root": str(tmp_path), "packages": "key", "extras": []})
    return venv


def test_a_whole_environment_is_known_again(environment: Path) -> None:
    state = setup.read_state()
    assert state is not None
    assert state["packages"] == "key"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"root": "elsewhere"}'])
def test_a_damaged_or_moved_environment_is_not_whole(environment: Path, content: str) -> None:
    (environment / "nova-setup.json").write_text(content)
    assert setup.read_state() is None


def test_an_environment_whose_python_is_gone_is_not_whole(environment: Path) -> None:
    (environment / "bin" / "python").unlink()
    (environment / "bin" / "python").symlink_to("/nowhere/python3")
    assert setup.read_state() is None


def test_an_environment_that_something_else_made_is_not_whole(environment: Path) -> None:
    (environment / "nova-setup.json").unlink()
    assert setup.read_state() is None


def test_the_requirements_are_those_of_the_project() -> None:
    bare, developers = setup.requirements([]), setup.requirements(["dev"])
    assert any(line.startswith("hatchling") for line in bare)
    assert any(line.startswith("ziglang") for line in bare)
    assert not any(line.startswith("pytest") for line in bare)
    assert set(bare) < set(developers)


def test_a_step_shows_its_title_and_counts_downloads_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Steps(tmp_path / "log")
    made.run("say a word", [sys.executable, "-c", "print('word')"], download=True)
    made.run("say another", [sys.executable, "-c", "print('more')"])
    assert "say a word" in capsys.readouterr().out
    assert (tmp_path / "log").read_text().count("word") >= 1
    assert 0 < made.downloads < made.seconds()
    assert made.count == 2


def test_a_failed_step_shows_the_end_of_what_was_printed(tmp_path: Path) -> None:
    made = Steps(tmp_path / "log")
    script = "import sys; [print('line', i) for i in range(99)]; sys.exit('the reason')"
    with pytest.raises(StepFailed) as caught:
        made.run("fail", [sys.executable, "-c", script])
    told = str(caught.value)
    assert "the reason" in told
    assert "line 98" in told
    assert "line 7\n" not in told
    assert str(tmp_path / "log") in told


def test_a_missing_program_is_a_failed_step(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="no-such-program"):
        Steps(tmp_path / "log").run("try", ["no-such-program"])


def test_the_last_line_counts_without_a_line_break(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="half a line"):
        Steps(tmp_path / "log").run("fail", ["sh", "-c", "printf 'half a line'; exit 3"])


@pytest.mark.parametrize(
    ("line", "share", "doing"),
    [
        ("dlstatus:1:50.0:Retrieving file 1 of 2", 0.5, "Retrieving file 1 of 2"),
        ("pmstatus:qemu:12.5:Unpacking qemu (amd64)", 0.125, "Unpacking qemu (amd64)"),
        ("Reading package lists...", None, "Reading package lists..."),
        ("pmstatus:a:b:c", None, "c"),
    ],
)
def test_apt_says_how_far_it_is(line: str, share: float | None, doing: str) -> None:
    assert system.apt_status(line) == (share, doing)


def test_the_news_of_a_template_build_shows_the_largest_part_that_is_not_done() -> None:
    news = setup.TemplateNews()
    assert news("fetching packages\t0\t100") == (0.0, "fetching packages")
    assert news("fetching the kernel\t5\t10") == (0.0, "fetching packages")
    assert news("fetching packages\t100\t100") == (0.5, "fetching the kernel")
    assert news("fetching the kernel\t10\t10") == (1.0, "fetching the kernel")
    assert news("waiting for another build\t0\t") == (0.0, "waiting for another build")
    assert news("something else") == (None, "something else")
    news("downloads\t1.5")
    assert news.fetched == 1.5


def test_without_apt_or_homebrew_the_missing_programs_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StepFailed, match="qemu-system"):
        system.install(system.needs(), Steps(tmp_path / "log"))


def test_an_ordinary_user_without_sudo_is_told_the_exact_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apt-get").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StepFailed, match=r"apt-get install --no-install-recommends .*qemu-system"):
        system.install(system.needs(), Steps(tmp_path / "log"))


def test_an_old_python_is_told_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    with pytest.raises(StepFailed, match=r"3\.9\.2(.|\n)*PYTHON=python3\.11"):
        system.check_python()


@pytest.mark.parametrize("name", ["setup.py", "steps.py", "system.py"])
def test_an_old_python_can_read_the_scripts_that_tell_it_so(name: str) -> None:
    ast.parse((ROOT / "scripts" / name).read_text("utf-8"), feature_version=(3, 7))


def test_every_make_target_is_listed_by_make_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = next(line for line in makefile.splitlines() if line.startswith(".PHONY:"))
    listed = subprocess.run(
        ["make", "--no-print-directory", "-C", ROOT, "help"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for target in phony.split()[1:]:
        assert f"make {target} " in listed


def test_the_state_is_replaced_in_one_piece(environment: Path) -> None:
    setup.write_state({"root": str(setup.ROOT), "packages": "other", "extras": ["dev"]})
    assert [path.name for path in environment.iterdir() if path.is_file()] == ["nova-setup.json"]
    assert json.loads((environment / "nova-setup.json").read_text())["packages"] == "other"


def test_plain_output_is_shown_as_it_is() -> None:
    assert steps.plain("a line") == (None, "a line")
