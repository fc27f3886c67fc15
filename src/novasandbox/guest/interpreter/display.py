"""Values as MIME bundles: what IPython's protocol of `_repr_*_` methods gives, all of it."""

from __future__ import annotations

import binascii
import io
import json
import sys
from typing import Any

from novasandbox.guest.interpreter import wire

PLAIN = "text/plain"
_METHODS = {
    "_repr_html_": "text/html",
    "_repr_markdown_": "text/markdown",
    "_repr_latex_": "text/latex",
    "_repr_svg_": "image/svg+xml",
    "_repr_png_": "image/png",
    "_repr_jpeg_": "image/jpeg",
    "_repr_pdf_": "application/pdf",
    "_repr_json_": "application/json",
    "_repr_javascript_": "application/javascript",
}
# They have none of those, and looking for each takes longer than the rest of a small cell.
_SIMPLE = frozenset({bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset})
_CUT = "\n… {:,} characters are left out …\n"

# matplotlib's figures that this cell has shown by itself.
_shown: list[Any] = []

_escape = json.encoder.encode_basestring_ascii


class Budget:
    """What one cell may still show. exceeded: something was left out or cut."""

    def __init__(self) -> None:
        self.left = wire.MOST_RESULTS
        self.bundles = wire.MOST_BUNDLES
        self.items = wire.MOST_ITEMS
        self.exceeded = False

    @property
    def is_touched(self) -> bool:
        """Whether anything was shown."""
        return self.bundles < wire.MOST_BUNDLES

    def encode(self, bundle: dict[str, Any]) -> bytes:
        """A bundle as JSON; empty where there is no room for it."""
        self.bundles -= 1
        texts: list[str] = []
        others: list[str] = []
        for mime, value in list(bundle.items())[: wire.MOST_TYPES]:
            text = _encoded(mime, value)
            if len(text) > wire.MOST_VALUE and mime == PLAIN:
                self.exceeded = True
                text = _escape(middle_cut(value, wire.MOST_VALUE // 12))
            is_text = text.startswith('"')
            if len(text) > wire.MOST_VALUE or len(mime) > wire.MOST_TYPE:
                self.exceeded = True
            elif text and (is_text or self._has_room_for(text, value)):
                (texts if is_text else others).append(_escape(mime) + ":" + text)
        # The host reads what is no text last, and knows by then how much of it there is.
        data = ("{" + ",".join(texts + others) + "}").encode()
        if len(data) > self.left or self.bundles < 0:
            self.exceeded = True
            return b""
        self.left -= len(data)
        return data

    def _has_room_for(self, text: str, value: Any) -> bool:
        items = wire.items_of(text)
        # The bundle itself is a level too. Only what has so many brackets can be so deep.
        is_deep = items >= wire.MOST_DEPTH - 1 and wire.is_deeper(value, wire.MOST_DEPTH - 1)
        if items > self.items or is_deep:
            self.exceeded = True
            return False
        self.items -= items
        return True


def _encoded(mime: str, value: Any) -> str:
    if isinstance(value, (bytes, bytearray)):
        value = binascii.b2a_base64(value, newline=False).decode()
    if isinstance(value, str):
        return _escape(value)
    if not mime.endswith("json"):
        return ""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return ""


def middle_cut(text: str, most: int) -> str:
    """At most about `most` characters of text: its beginning and its end."""
    if len(text) <= most:
        return text
    half = most // 2
    return text[:half] + _CUT.format(len(text) - 2 * half) + text[-half:]


def bundle_of(value: Any) -> dict[str, Any]:
    """Every representation of a value. Raises what its `__repr__` raises."""
    kind = type(value)
    if kind in _SIMPLE:
        return {PLAIN: repr(value)}
    if _is_figure(value):
        _shown.append(value)
        return _picture(value)
    bundle: dict[str, Any] = {}
    if kind is not type:
        for method, mime in _METHODS.items():
            if hasattr(kind, method):
                found = _tried(value, method)
                if found is not None:
                    bundle[mime] = found
        if hasattr(kind, "_repr_mimebundle_"):
            given = _tried(value, "_repr_mimebundle_")
            if isinstance(given, dict):
                bundle.update((mime, data) for mime, data in given.items() if type(mime) is str)
    if not isinstance(bundle.get(PLAIN), str):
        bundle[PLAIN] = repr(value)
    return bundle


def _tried(value: Any, method: str) -> Any:
    """What a method gives, without its metadata; None where it gives nothing or fails."""
    try:
        found = getattr(value, method)()
    except Exception:  # noqa: BLE001  (the user's; the other representations are still good)
        return None
    return found[0] if isinstance(found, tuple) and len(found) == 2 else found


def _is_figure(value: Any) -> bool:
    matplotlib = sys.modules.get("matplotlib.figure")
    return matplotlib is not None and isinstance(value, matplotlib.Figure)


def _picture(figure: Any) -> dict[str, Any]:
    bundle: dict[str, Any] = {}
    for mime, form in (("image/png", "png"), ("image/svg+xml", "svg")):
        file = io.BytesIO()
        figure.savefig(file, format=form, bbox_inches="tight")
        data = file.getvalue()
        bundle[mime] = data if form == "png" else data.decode("utf-8", "replace")
    bundle[PLAIN] = repr(figure)
    return bundle


def figures() -> Any:
    """The bundle of each of matplotlib's figures that the cell left open, and did not show itself.

    All of them are closed then.
    """
    shown, _shown[:] = _shown[:], []
    helpers = sys.modules.get("matplotlib._pylab_helpers")
    if helpers is None or not helpers.Gcf.figs:
        return
    pyplot = sys.modules.get("matplotlib.pyplot")
    for number in pyplot.get_fignums() if pyplot is not None else ():
        figure = pyplot.figure(number)  # type: ignore[union-attr]
        try:
            if not any(figure is each for each in shown):
                yield _picture(figure)
        finally:
            pyplot.close(figure)  # type: ignore[union-attr]
