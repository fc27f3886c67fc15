"""Documents that run: their snippets are found, run and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

import snippets

DOCUMENT = """\
Text, and `code`.

```sh
make run
```

```python
print(6 * 7)
```
```text
42
```

More.

```console
$ printf 'a\\nb\\n'
a
b
$ echo one \\
>   two
one two
```
"""


def test_programs_and_commands_are_found_with_their_output() -> None:
    program, first, second = snippets.find(DOCUMENT)
    assert (program.language, program.code, program.expected) == (
        "python",
        "print(6 * 7)\n",
        "42\n",
    )
    assert (first.code, first.expected) == ("printf 'a\\nb\\n'", "a\nb\n")
    assert (second.code, second.expected) == ("echo one \\\n  two", "one two\n")


def test_each_snippet_knows_its_line() -> None:
    lines = DOCUMENT.splitlines()
    program, *commands = snippets.find(DOCUMENT)
    assert lines[program.line - 1] == "```python"
    for command in commands:
        assert lines[command.line - 1].startswith("$ ")


def test_text_elsewhere_is_not_the_output_of_a_program() -> None:
    (program,) = snippets.find("```python\npass\n```\nwords\n```text\nshown\n```\n")
    assert program.expected is None


def test_what_is_found_runs_and_agrees(tmp_path: Path) -> None:
    for snippet in snippets.find(DOCUMENT):
        outcome = snippets.run(snippet, tmp_path)
        assert outcome.exit_code == 0
        assert snippet.expected is not None
        assert snippets.agrees(snippet.expected, outcome.output)


def test_a_failing_command_is_noticed_also_in_a_pipe(tmp_path: Path) -> None:
    (snippet,) = snippets.find("```console\n$ false | cat\n```\n")
    assert snippets.run(snippet, tmp_path).exit_code != 0


@pytest.mark.parametrize(
    ("expected", "output", "same"),
    [
        ("a\nb\n", "a\nb\n", True),
        ("a\nb\n", "a  \nb\n\n", True),
        ("a\n", "b\n", False),
        ("up … s\n", "up 1.25 s\n", True),
        ("first\n…\nlast\n", "first\n1\n2\n3\nlast\n", True),
        ("first\n…\nlast\n", "first\n1\n", False),
        ("a.c\n", "abc\n", False),
        ("", "noise\n", False),
    ],
)
def test_an_ellipsis_stands_for_anything(expected: str, output: str, same: bool) -> None:
    assert snippets.agrees(expected, output) is same


def test_output_without_a_command_is_a_mistake_in_the_document() -> None:
    with pytest.raises(ValueError, match="line 2"):
        snippets.find("```console\nls\n```\n")
