"""The distributions as a picture: each measure's samples beside its floor's, as SVG.

A step curve says for each time which part of the samples was as quick; a steep one is steady.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from bench.result import Result

_WIDTH, _HEIGHT = 300, 130
_MARGIN, _HEAD = 34, 44
_COLUMNS = 3
_OURS, _FLOOR, _GREY = "#1f6feb", "#d1603d", "#8b949e"
_FEWEST = 2
# Of all samples so many are shown; the others would make the rest a line at the edge.
_SHOWN = 0.99


def write_svg(path: Path, heading: str, results: Sequence[Result]) -> int:
    """Draw every measure that has a distribution; gives how many."""
    known = {id(each.samples): each for each in reversed(results)}
    drawn = [each for each in reversed(known.values()) if len(each.samples) >= _FEWEST]
    rows = -(-len(drawn) // _COLUMNS)
    width = _COLUMNS * (_WIDTH + 2 * _MARGIN)
    height = _HEAD + rows * (_HEIGHT + 2 * _MARGIN)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(_MARGIN, 18, heading, size=12),
        _text(_MARGIN, 34, "ours", fill=_OURS) + _text(_MARGIN + 36, 34, "floor", fill=_FLOOR),
        _text(_MARGIN + 76, 34, "part of the samples that was as quick; dashed: p50", fill=_GREY),
    ]
    for number, result in enumerate(drawn):
        row, column = divmod(number, _COLUMNS)
        x = column * (_WIDTH + 2 * _MARGIN) + _MARGIN
        y = _HEAD + row * (_HEIGHT + 2 * _MARGIN) + _MARGIN
        lines += [f'<g transform="translate({x} {y})">', *_panel(result), "</g>"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*lines, "</svg>\n"]))
    return len(drawn)


def _panel(result: Result) -> Iterator[str]:
    series = [(sorted(result.floor), _FLOOR), (sorted(result.samples), _OURS)]
    series = [(samples, color) for samples, color in series if samples]
    low = min(samples[0] for samples, _ in series)
    high = max(samples[int(_SHOWN * (len(samples) - 1))] for samples, _ in series)
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return min(1.0, (value - low) / span) * _WIDTH

    ratio = "" if result.ratio is None else f", {result.ratio:.2f} x its floor"
    yield _text(0, -8, f"{result.name}{ratio} (n={len(result.samples)})", size=12)
    yield f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#d0d7de"/>'
    yield _text(0, _HEIGHT + 14, f"{low:.3g}", fill=_GREY)
    end = f"{high:.3g} {result.unit}"
    yield _text(_WIDTH, _HEIGHT + 14, end, fill=_GREY, anchor="end")
    for samples, color in series:
        yield f'<path d="{_steps(samples, place)}" fill="none" stroke="{color}" stroke-width="2"/>'
        middle = place(samples[len(samples) // 2])
        yield (
            f'<line x1="{middle:.1f}" x2="{middle:.1f}" y2="{_HEIGHT}" stroke="{color}" '
            'stroke-dasharray="3 3"/>'
        )


def _steps(samples: Sequence[float], place: Callable[[float], float]) -> str:
    parts = [f"M{place(samples[0]):.1f} {_HEIGHT}"]
    for number, value in enumerate(samples, 1):
        parts.append(f"H{place(value):.1f}V{_HEIGHT * (1 - number / len(samples)):.1f}")
    return "".join([*parts, f"H{_WIDTH}"])


def _text(
    x: float, y: float, words: str, *, size: int = 11, fill: str = "black", anchor: str = "start"
) -> str:
    attributes = f'x="{x}" y="{y}" font-size="{size}" fill="{fill}" text-anchor="{anchor}"'
    return f"<text {attributes}>{escape(words)}</text>"
