"""What the benchmark makes of its samples: figures, ratios, targets, and the JSON it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pytest

from bench import plot, report
from bench.result import Figure, Result, Target

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmark.py"
KEYS = ["name", "unit", "n", "p50", "p95", "p99", "floor_p50", "ratio", "target"]
_SVG = "{http://www.w3.org/2000/svg}"
TO_A_HUNDRED = [float(number) for number in range(101)]


@pytest.mark.parametrize(
    ("samples", "median"), [([3.0], 3), ([4.0, 1.0], 2.5), ([9.0, 1.0, 2.0], 2)]
)
def test_the_median_is_the_middle_one_or_between_two(samples: list[float], median: float) -> None:
    assert Result("a", "ms", samples).p50 == median


def test_a_quantile_is_what_so_many_samples_are_not_worse_than() -> None:
    result = Result("a", "ms", TO_A_HUNDRED[::-1])
    assert [result.quantile(f) for f in (0, 0.5, 0.95, 0.99, 1)] == [0, 50, 95, 99, 100]


def test_a_quantile_between_two_samples_is_between_them() -> None:
    assert Result("a", "ms", [10.0, 20.0]).quantile(0.95) == pytest.approx(19.5)
    assert Result("a", "ms", [10.0, 20.0, 40.0]).quantile(0.75) == pytest.approx(30)


def test_one_sample_is_every_quantile() -> None:
    result = Result("a", "ms", [7.0])
    assert result.p50 == result.quantile(0.95) == result.quantile(0.99) == 7


def test_of_a_rate_the_slow_end_is_the_lower_one() -> None:
    rate = Result("a", "MB/s", TO_A_HUNDRED)
    assert (rate.p50, rate.quantile(0.95), rate.quantile(0.99)) == (50, 5, 1)


def test_the_ratio_is_ours_over_the_floors() -> None:
    result = Result("a", "ms", [3.0, 30.0, 2.0], [1.0, 2.0])
    assert (result.floor_p50, result.ratio) == (1.5, 2)


def test_without_a_floor_there_is_no_ratio() -> None:
    result = Result("a", "ms", [3.0])
    assert (result.floor_p50, result.ratio) == (None, None)


@pytest.mark.parametrize(
    ("relation", "value", "is_met"),
    [
        *[("<=", 1.9, False), ("<=", 2, True), ("<=", 2.1, True)],
        *[(">=", 1.9, True), (">=", 2, True), (">=", 2.1, False)],
    ],
)
@pytest.mark.parametrize(
    ("figure", "samples", "floor"),
    [
        ("p50", [1.0, 2.0, 9.0], [5.0]),
        ("ratio", [1.0, 2.0, 9.0], [1.0]),
        ("p99", [1.0, 1.0, 1.0, 2.0, 2.0, 2.0], [5.0]),
    ],
)
def test_a_target_is_met_at_most_or_at_least(
    figure: Figure,
    samples: list[float],
    floor: list[float],
    relation: Literal["<=", ">="],
    value: float,
    is_met: bool,
) -> None:
    # The one that is asked for is 2, and the others are not.
    result = Result("a", "ms", samples, floor, Target(figure, relation, value))
    assert result.verdict is is_met


def test_without_a_target_there_is_no_verdict() -> None:
    assert Result("a", "ms", [1.0], [1.0]).verdict is None


def test_a_ratio_that_there_is_not_meets_no_target() -> None:
    assert Result("a", "ms", [1.0], target=Target("ratio", "<=", 2)).verdict is False


def test_what_is_written_has_every_figure_rounded(tmp_path: Path) -> None:
    target = Target("ratio", "<=", 1.5)
    measured = Result("a", "ms", [1.0, 1.0004, 2.0], [3.0], target)
    report.write_json(tmp_path / "out", {"cpus": 2}, [measured, Result("b", "MB/s", [4.0])])
    assert json.loads((tmp_path / "out").read_text()) == {
        "host": {"cpus": 2},
        "results": [
            dict(
                zip(KEYS, ["a", "ms", 3, 1.0, 1.9, 1.98, 3.0, 0.333, "ratio <= 1.5"], strict=True)
            ),
            dict(zip(KEYS, ["b", "MB/s", 1, 4.0, 4.0, 4.0, None, None, None], strict=True)),
        ],
    }


def test_pairs_of_ours_and_the_floors_are_taken_apart() -> None:
    result = Result.of_pairs("a", "ms", [(3.0, 1.0), (5.0, 2.0)], Target("ratio", "<=", 2))
    assert (result.samples, result.floor) == ((3, 5), (1, 2))


def test_every_measure_with_a_distribution_is_drawn(tmp_path: Path) -> None:
    results = [
        Result("a<b", "ms", [3.0, 1.0, 2.0], [1.0, 1.5]),
        Result("steady", "MB/s", [4.0, 4.0]),
        Result("one", "ms", [4.0]),
    ]
    out = tmp_path / "out.svg"
    assert plot.write_svg(out, "this host", results) == 2
    root = ElementTree.parse(out).getroot()
    words = [each.text for each in root.iter(f"{_SVG}text")]
    assert "this host" in words
    assert "a<b, 1.60 x its floor (n=3)" in words
    # Two curves of the first, one of the second.
    assert len(list(root.iter(f"{_SVG}path"))) == 3


def test_the_benchmark_writes_host_and_results(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCHMARK), "--only", "import", "-n", "2", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    written = json.loads(out.read_text())
    assert list(written) == ["host", "results"]
    assert set(written["host"]) >= {"cpu", "cpus", "memory_mib", "system", "python", "load"}
    (result,) = written["results"]
    assert list(result) == KEYS
    assert (result["name"], result["unit"], result["n"]) == ("import", "ms", 2)
    assert result["p50"] <= result["p95"] <= result["p99"]
    assert result["ratio"] == pytest.approx(result["p50"] / result["floor_p50"], abs=0.001)
    assert f"{result['target']}" in done.stdout
