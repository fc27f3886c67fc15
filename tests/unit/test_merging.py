"""Which layers of a disk are merged, and which stay where they are."""

from __future__ import annotations

import pytest

from novasandbox.core.merging import how_many_stay

MIB = 1 << 20
GIB = 1 << 30


def stay(sizes: list[int], *, shared: bool | list[bool] = False, own: int = 0) -> int:
    is_shared = shared if isinstance(shared, list) else [shared] * len(sizes)
    return how_many_stay(sizes, is_shared, own)


def test_small_layers_of_its_own_are_all_merged() -> None:
    assert stay([]) == 0
    assert stay([MIB]) == 0
    assert stay([MIB] * 5) == 0


def test_what_others_need_stays_as_long_as_the_layers_are_few() -> None:
    assert stay([MIB] * 8, shared=True) == 8
    assert stay([MIB] * 9, shared=True) == 0
    assert stay([MIB] * 4, shared=[True, False, True, False]) == 3


def test_a_layer_larger_than_all_above_it_stays() -> None:
    assert stay([GIB]) == 1
    assert stay([GIB, 100 * MIB, MIB]) == 2
    assert stay([GIB, 100 * MIB, MIB], own=95 * MIB) == 1
    assert stay([GIB, 100 * MIB, MIB], own=GIB) == 0
    assert stay([GIB, 100 * MIB, 100 * MIB]) == 1


def test_layers_are_never_many_whatever_their_sizes() -> None:
    sizes = [GIB << (20 - number) for number in range(20)]
    assert stay(sizes) == 8
    assert stay(sizes, shared=True) == 8


@pytest.mark.parametrize("written", [MIB, 40 * MIB, 300 * MIB])
def test_bytes_are_copied_a_few_times_only(written: int) -> None:
    """A disk that is written a little, put to sleep and woken a thousand times."""
    sizes: list[int] = []
    copied, deepest = 0, 0
    for _ in range(1000):
        sizes.append(written)
        keep = stay(sizes)
        copied += sum(sizes[keep:])
        # What is merged lies in the layer on top, which is the next one to be frozen.
        sizes, merged = sizes[:keep], sum(sizes[keep:])
        if merged:
            sizes.append(merged)
        deepest = max(deepest, len(sizes))
    assert deepest <= 9
    assert copied <= 1000 * (written * 12 + 8 * MIB)
