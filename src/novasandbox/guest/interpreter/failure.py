"""An exception of the user's as data, without the frames of this package."""

from __future__ import annotations

import json
import os
import traceback

from novasandbox.guest.interpreter import wire
from novasandbox.guest.interpreter.display import middle_cut

_OURS = os.path.dirname(__file__) + os.sep
_MOST_VALUE = 64 * 2**10
_MOST_NAME = 1_000


def describe(error: BaseException) -> bytes:
    """Name, value and traceback in JSON."""
    try:
        found = _described(error)
    except BaseException as second:  # noqa: BLE001  (its own methods failed, or memory is out)
        found = {"name": _name(error), "value": "", "traceback": ""}
        found["value"] = f"it could not be shown: {type(second).__name__}"
    return json.dumps(found).encode()


def _described(error: BaseException) -> dict[str, str]:
    value = str(error)
    if isinstance(error, SystemExit):
        # Nothing failed: where it was raised is of no interest.
        text = f"SystemExit: {value}\n"
    else:
        report = traceback.TracebackException(type(error), error, error.__traceback__)
        _leave_out_ours(report, set())
        if isinstance(error, KeyboardInterrupt) and _cells(report.stack) == []:
            report.stack[:] = []  # The event loop was waiting for what the cell awaits.
        text = "".join(report.format())
    return {
        "name": _name(error),
        "value": middle_cut(value, _MOST_VALUE),
        "traceback": middle_cut(text, wire.MOST_TRACEBACK),
    }


def _name(error: BaseException) -> str:
    # Whatever its metaclass says of itself.
    return middle_cut(str(vars(type)["__name__"].__get__(type(error))), _MOST_NAME)


def _leave_out_ours(report: traceback.TracebackException | None, seen: set[int]) -> None:
    if report is None or id(report) in seen:
        return
    seen.add(id(report))
    frames = [frame for frame in report.stack if not frame.filename.startswith(_OURS)]
    cells = _cells(frames)
    # What stands before the cell is the event loop that ran it.
    report.stack[:] = frames[cells[0] :] if cells else frames
    if not report.stack and hasattr(report, "exc_traceback"):
        report.exc_traceback = None  # Before 3.11 a heading would stand there for it.
    _leave_out_ours(report.__cause__, seen)
    _leave_out_ours(report.__context__, seen)
    for inner in getattr(report, "exceptions", None) or ():
        _leave_out_ours(inner, seen)


def _cells(frames: list[traceback.FrameSummary]) -> list[int]:
    return [i for i, frame in enumerate(frames) if frame.filename.startswith("<cell ")]
