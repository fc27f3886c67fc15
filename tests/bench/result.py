"""A figure beside its floor: what was measured, how often, and what it shall be."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

Figure = Literal["p50", "p99", "ratio"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure shall be: at most, or at least, so much."""

    figure: Figure
    relation: Literal["<=", ">="]
    value: float

    def __str__(self) -> str:
        return f"{self.figure} {self.relation} {self.value:g}"

    def is_met_by(self, value: float) -> bool:
        """Whether the figure is as it shall be."""
        return value <= self.value if self.relation == "<=" else value >= self.value


@dataclass(frozen=True, slots=True)
class Result:
    """The samples of one measure, and those of its floor.

    unit: as `ms`, or `MB/s`, of which more is better: its p95 and p99 are then the slow end too.
    """

    name: str
    unit: str
    samples: Sequence[float]
    floor: Sequence[float] = ()
    target: Target | None = None

    @classmethod
    def of_pairs(
        cls, name: str, unit: str, pairs: Sequence[tuple[float, float]], target: Target
    ) -> Self:
        """From pairs of ours and the floor's."""
        ours, floor = zip(*pairs, strict=True)
        return cls(name, unit, ours, floor, target)

    @property
    def p50(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def floor_p50(self) -> float | None:
        """The floor's median; None where there is no floor."""
        return statistics.median(self.floor) if self.floor else None

    @property
    def ratio(self) -> float | None:
        """Ours over the floor's."""
        return self.p50 / self.floor_p50 if self.floor_p50 else None

    @property
    def verdict(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        figures = {"p50": self.p50, "p99": self.quantile(0.99), "ratio": self.ratio}
        value = figures[self.target.figure]
        return value is not None and self.target.is_met_by(value)

    def quantile(self, fraction: float) -> float:
        """What this fraction of the samples is not worse than."""
        ordered = sorted(self.samples, reverse=self.unit == "MB/s")
        place = fraction * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    def as_data(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "name": self.name,
            "unit": self.unit,
            "n": len(self.samples),
            "p50": round(self.p50, 3),
            "p95": round(self.quantile(0.95), 3),
            "p99": round(self.quantile(0.99), 3),
            "floor_p50": None if self.floor_p50 is None else round(self.floor_p50, 3),
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "target": None if self.target is None else str(self.target),
        }
