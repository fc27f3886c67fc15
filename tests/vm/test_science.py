"""Cells that use numpy, pandas and matplotlib, in the template that has them."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from novasandbox import Sandbox

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
async def science(qemu: str) -> AsyncIterator[Sandbox]:
    """A sandbox of the template."""
    async with Sandbox.create("debian-science", timeout=None) as sandbox:
        yield sandbox


async def _results(sandbox: Sandbox, code: str) -> list[dict[str, Any]]:
    result = await sandbox.run_code(code, timeout=120)
    assert result.error is None, result.error.traceback
    return [dict(each) for each in result.results]


def _check_picture(bundle: dict[str, Any], words: str) -> None:
    """PNG, SVG and text, and the picture has something in it."""
    assert set(bundle) == {"image/png", "image/svg+xml", "text/plain"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG\r\n")
    assert bundle["image/svg+xml"].rstrip().endswith("</svg>")
    assert bundle["text/plain"] == words


async def test_what_the_template_warms_is_imported_already(science: Sandbox) -> None:
    code = "import sys; [n in sys.modules for n in ('numpy', 'pandas', 'matplotlib.pyplot')]"
    assert (await science.run_code(code)).text == "[True, True, True]"


async def test_numpy_counts_with_its_libraries(science: Sandbox) -> None:
    code = "import numpy as np\nnp.linalg.solve(np.array([[2., 0], [0, 4]]), np.array([2., 8]))"
    (bundle,) = await _results(science, code)
    assert bundle == {"text/plain": "array([1., 2.])"}


async def test_two_copies_have_random_numbers_of_their_own(science: Sandbox) -> None:
    code = "import numpy as np\nnp.random.rand(), np.random.default_rng().random()"
    (child,) = await science.fork()
    async with child:
        here, there = await science.run_code(code), await child.run_code(code)
    assert here.error is None
    assert there.error is None
    assert here.text != there.text


async def test_a_table_is_html_and_text(science: Sandbox) -> None:
    code = "import pandas as pd\ntable = pd.DataFrame({'a': [1, 2], 'b': ['x', '<y>']})\ntable"
    (bundle,) = await _results(science, code)
    assert set(bundle) == {"text/html", "text/plain"}
    assert '<table border="1" class="dataframe">' in bundle["text/html"]
    assert "<td>&lt;y&gt;</td>" in bundle["text/html"]
    assert bundle["text/plain"] == "   a    b\n0  1    x\n1  2  <y>"
    series = await _results(science, "table['a']")
    assert series == [{"text/plain": "0    1\n1    2\nName: a, dtype: int64"}]


async def test_open_figures_are_results_and_then_closed(science: Sandbox) -> None:
    code = "import matplotlib.pyplot as plt\nfor n in (1, 2):\n    plt.figure(n); plt.plot([n, 3])"
    first, second = await _results(science, code)
    for bundle in (first, second):
        _check_picture(bundle, "<Figure size 640x480 with 1 Axes>")
    assert first["image/png"] != second["image/png"]
    assert (await science.run_code("plt.get_fignums()")).text == "[]"
    assert (await science.run_code("plt.get_backend()")).text == "'agg'"


async def test_a_figure_that_is_shown_is_shown_once(science: Sandbox) -> None:
    code = "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\naxes.bar([1], [2])\n"
    (bundle,) = await _results(science, code + "figure")
    _check_picture(bundle, "<Figure size 640x480 with 1 Axes>")
    (bundle,) = await _results(science, code + "display(figure)")
    _check_picture(bundle, "<Figure size 640x480 with 1 Axes>")
    # Closed by itself, it can still be shown, and again in a later cell.
    assert await _results(science, code + "plt.close()") == []
    for _ in range(2):
        (bundle,) = await _results(science, "figure")
        _check_picture(bundle, "<Figure size 640x480 with 1 Axes>")


async def test_what_draws_for_pandas_is_a_figure_too(science: Sandbox) -> None:
    code = "import pandas as pd\nax = pd.DataFrame({'x': range(9)}).plot(title='nine')"
    (bundle,) = await _results(science, code)
    assert "nine" in bundle["image/svg+xml"] or "<path" in bundle["image/svg+xml"]
    _check_picture(bundle, "<Figure size 640x480 with 1 Axes>")


async def test_a_figure_that_cannot_be_drawn_is_the_cells_error(science: Sandbox) -> None:
    code = "import matplotlib.pyplot as plt\nplt.title('$\\\\nosuchcommand$')"
    result = await science.run_code(code, timeout=120)
    assert result.error is not None
    assert "nosuchcommand" in result.error.value
    assert (await science.run_code("plt.get_fignums()")).text == "[]"
