"""The build compiles what is stale and nothing else."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import build as native_build
from build import BuildError, Component

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def component(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Component:
    """One component that looks built: its sources, a binary, and the binary's stamp."""
    monkeypatch.setattr(native_build, "OUTPUT", tmp_path / "output")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "main.c").write_text("int main(void) { return 0; }\n")
    (folder / "main.h").write_text("/* nothing */\n")
    made = Component("thing", folder)
    monkeypatch.setattr(native_build, "COMPONENTS", [made])
    made.binary("x86_64").parent.mkdir()
    made.binary("x86_64").write_bytes(b"binary")
    made.stamp("x86_64").write_text(native_build.key(made, "x86_64"))
    return made


def is_stale(arch: str = "x86_64") -> bool:
    return bool(native_build.stale([arch]))


def test_an_unchanged_tree_compiles_nothing(component: Component) -> None:
    assert native_build.build(["x86_64"]) == []


@pytest.mark.parametrize("name", ["main.c", "main.h", "new.c", "new.h"])
def test_a_changed_or_new_file_makes_it_stale(component: Component, name: str) -> None:
    (component.folder / name).write_text("int changed;\n")
    assert is_stale()


def test_moving_text_from_one_file_to_another_makes_it_stale(component: Component) -> None:
    text = (component.folder / "main.c").read_text()
    (component.folder / "main.c").write_text("")
    (component.folder / "main.h").write_text("/* nothing */\n" + text)
    assert is_stale()


def test_another_compiler_or_flag_makes_it_stale(
    component: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_build, "FLAGS", [*native_build.FLAGS, "-g"])
    assert is_stale()
    monkeypatch.undo()
    monkeypatch.setattr(native_build, "COMPONENTS", [component])
    monkeypatch.setattr(native_build, "ZIG_REQUIREMENT", "ziglang==99")
    assert is_stale()


def test_a_lost_binary_or_stamp_makes_it_stale(component: Component) -> None:
    component.stamp("x86_64").unlink()
    assert is_stale()
    component.stamp("x86_64").write_text(native_build.key(component, "x86_64"))
    assert not is_stale()
    component.binary("x86_64").unlink()
    assert is_stale()


def test_each_architecture_is_stale_on_its_own(component: Component) -> None:
    assert not is_stale("x86_64")
    assert is_stale("aarch64")


def test_a_binary_that_an_earlier_build_kept_needs_no_compiler(component: Component) -> None:
    kept = native_build.kept_binary(component, "aarch64", native_build.key(component, "aarch64"))
    assert native_build.needs_compiler(["aarch64"])
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"kept")
    assert not native_build.needs_compiler(["aarch64"])
    assert native_build.build(["aarch64"]) == [component.binary("aarch64")]
    assert component.binary("aarch64").read_bytes() == b"kept"
    assert not is_stale("aarch64")


def test_broken_c_says_where_and_leaves_the_old_binary(
    component: Component, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without linking, or a machine's first build would make the whole libc here.
    monkeypatch.setattr(native_build, "FLAGS", [*native_build.FLAGS, "-c"])
    (component.folder / "main.c").write_text("int main(void) { return nothing; }\n")
    with pytest.raises(BuildError, match=r"main\.c:1.*nothing"):
        native_build.build(["x86_64"])
    assert component.binary("x86_64").read_bytes() == b"binary"
    assert is_stale()


def test_an_unknown_target_is_named(component: Component) -> None:
    with pytest.raises(BuildError, match="riscv64"):
        native_build.build(["riscv64"])


def test_the_compiler_is_the_same_one_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    development = project["project"]["optional-dependencies"]["dev"]
    assert native_build.ZIG_REQUIREMENT in development
