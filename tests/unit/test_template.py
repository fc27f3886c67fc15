"""Templates as people write them: what is right, and how what is wrong is told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from novasandbox.core import template
from novasandbox.errors import InvalidConfig

PACKAGED = sorted((Path(template.__file__).parents[1] / "templates").glob("*.json"))
RIGHT: dict[str, Any] = {"name": "mine", "source": {"type": "debian", "packages": ["python3"]}}


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", PACKAGED, ids=lambda path: path.stem)
def test_every_template_of_the_package_is_valid_and_named_as_its_file(path: Path) -> None:
    assert template.load(path).name == path.stem


def test_a_template_that_says_little_gets_the_defaults() -> None:
    made = template.parse(RIGHT)
    assert (made.user, made.workdir) == ("user", "/home/user")
    assert made.resources.memory_mib == 256
    assert made.source == template.DebianSource(type="debian", packages=("python3",))


def test_an_oci_source_may_be_pinned() -> None:
    digest = "sha256:" + "a" * 64
    source = {"type": "oci", "image": "python:3.13-slim", "digest": digest}
    assert template.parse({**RIGHT, "source": source}).source.type == "oci"
    with pytest.raises(InvalidConfig, match=r"source\.digest"):
        template.parse({**RIGHT, "source": {**source, "digest": "sha256:short"}})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sauce": 1}, r"sauce: there is no such field \(did you mean source\?\)"),
        ({"source": {"type": "debian", "package": []}}, r"source\.package: .*mean packages"),
        ({"source": {"type": "oci", "images": "x"}}, r"source\.images: .*mean image"),
        ({"source": {"type": "tar"}}, r"source: .*tar.*debian"),
        ({"source": {"type": "debian", "packages": ["A B"]}}, r"source\.packages\[0\]"),
        ({"source": {"type": "debian", "suite": "noble"}}, r"source\.suite: .*bookworm"),
        ({"resources": {"memory": 1}}, r"resources\.memory: .*mean memory_mib"),
        ({"resources": {"vcpus": 0}}, r"resources\.vcpus: .*greater"),
        ({"name": "../x"}, "name"),
        ({"name": ""}, "name"),
        ({"workdir": "here"}, "workdir"),
        ({"user": "a:b"}, "user"),
        ({"env": {"A=B": "1"}}, r"env: 'A=B' cannot be the name"),
        ({"env": {"A": "x\0y"}}, "env: the value of A has a NUL"),
        ({"env": {"A": 1}}, r"env\.A"),
        ({"warmup": {"imports": ["a b"]}}, r"warmup\.imports\[0\]"),
        ({"hooks": {"before_snap": []}}, r"hooks\.before_snap: .*mean before_snapshot"),
    ],
)
def test_what_is_wrong_is_told_by_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        template.parse({**RIGHT, **change})


def test_the_line_is_told_and_all_faults_at_once(tmp_path: Path) -> None:
    text = json.dumps({**RIGHT, "versoin": "2", "resources": {"vcpus": 999}}, indent=1)
    with pytest.raises(InvalidConfig) as error:
        template.load(written(tmp_path, text))
    assert "line 9, versoin: there is no such field (did you mean version?)" in str(error.value)
    assert "line 11, resources.vcpus: " in str(error.value)
    assert "docs/templates.md" in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not JSON: .*line 1 column 2"),
        ("", "is not JSON"),
        ("[]", "is not a valid template"),
        ('{"name": "a", "name": "b"}', "the field name stands there twice"),
        ("[" * 100_000, "is not JSON"),
        ('{"a": NaN}', "is not a valid template"),
    ],
)
def test_what_is_no_template_at_all_is_told(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        template.load(written(tmp_path, text))


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="No such file"):
        template.load(tmp_path / "gone.json")
    with pytest.raises(InvalidConfig, match="cannot be read"):
        template.load(tmp_path)
    (tmp_path / "latin.json").write_bytes(b'{"name": "\xe9"}')
    with pytest.raises(InvalidConfig, match="not UTF-8"):
        template.load(tmp_path / "latin.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from([*template.Template.model_fields, "x"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(JSON)
def test_no_json_gives_anything_but_a_template_or_one_kind_of_error(content: Any) -> None:
    with contextlib.suppress(InvalidConfig):
        template.parse(content, text=json.dumps(content))
