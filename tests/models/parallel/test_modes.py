"""The registry of modes, and each mode's table against the algebra of models/parallel/mode.py."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import models.parallel.modes as room
from models.parallel import registry
from models.parallel.mode import ActivationSharding, Axes, Gather, LinearSharding, Mode
from models.parallel.registry import modes, nearest_sizes

each_mode = pytest.mark.parametrize("mode", modes().values(), ids=list(modes()))


def sizes_of(mode: Mode) -> Iterator[tuple[int, int, dict[str, int]]]:
    for depth in range(1, 9):
        for size in range(1, 65):
            axes = mode.axes(size, depth)
            if axes is not None:
                yield size, depth, axes


def dropped(axes: Axes, last: str | None) -> Axes:
    """Return the axes that shard a dimension after a gather of axis ``last``.

    Only the fastest axis can be gathered in order.
    """
    if last is None:
        return axes
    assert axes[-1:] == (last,), f"{last} is not the fastest of {axes}"
    return axes[:-1]


def multiplied(x: ActivationSharding, product: LinearSharding) -> ActivationSharding:
    """Return the sharding of reduce_scatter(all_gather(x) @ all_gather(w)).

    Raises:
        AssertionError: the result is not x @ w.
    """
    tokens, hidden = x.tokens, x.hidden
    if product.gather_x and product.gather_x.on == "T":
        tokens = dropped(tokens, product.gather_x.axis)
    elif product.gather_x:
        hidden = dropped(hidden, product.gather_x.axis)
    contracted = dropped(product.weight_in, product.gather_w)
    assert hidden == contracted, (
        f"features of x are sharded over {hidden}, inputs of w over {contracted}"
    )
    partial = () if product.scatter_y is None else (product.scatter_y,)
    assert contracted == partial, f"sums over {contracted} are scattered over {partial}"
    y = ActivationSharding(tokens=tokens + partial, hidden=product.weight_out)
    assert len({*y.tokens, *y.hidden}) == len(y.tokens) + len(y.hidden), f"an axis cuts twice: {y}"
    return y


@each_mode
def test_up_gives_the_inner_sharding_and_down_the_outer(mode: Mode) -> None:
    assert multiplied(mode.outer, mode.up) == mode.inner
    assert multiplied(mode.inner, mode.down) == mode.outer


@each_mode
def test_lookup_gives_the_outer_sharding(mode: Mode) -> None:
    """The table is sharded like a transposed *up* weight: vocabulary by its outputs, hidden by its
    inputs. Rows of other shards of the vocabulary are zero until summed over ``scatter_y``."""
    lookup, up = mode.lookup, mode.up
    hidden = dropped(up.weight_in, lookup.gather_w)
    assert up.weight_out == (() if lookup.scatter_y is None else (lookup.scatter_y,))
    tokens = lookup.tokens + up.weight_out
    if lookup.swap:
        turned = dict([lookup.swap, lookup.swap[::-1]])
        tokens, hidden = (tuple(turned.get(a, a) for a in axes) for axes in (tokens, hidden))
    assert ActivationSharding(tokens=tokens, hidden=hidden) == mode.outer


@each_mode
def test_activations_are_sharded_over_all_axes(mode: Mode) -> None:
    for size, _, axes in sizes_of(mode):
        for activation in (mode.outer, mode.inner):
            assert sorted(activation.tokens + activation.hidden) == sorted(axes), size


@each_mode
def test_product_of_axes_is_the_size_and_their_order_is_fixed(mode: Mode) -> None:
    found = list(sizes_of(mode))
    assert found
    for size, depth, axes in found:
        product = 1
        for n in axes.values():
            product *= n
        assert product == size, f"{axes} of {size} ranks at depth {depth}"
        assert list(axes) == list(mode.colossal_groups)


@each_mode
@pytest.mark.parametrize("size", [-4, 0])
def test_zero_or_negative_size_is_illegal(mode: Mode, size: int) -> None:
    assert mode.axes(size, 1) is None


def test_algebra_rejects_a_wrong_table() -> None:
    cube = modes()["3d"]
    wrong = [
        replace(cube.up, gather_w=None),
        replace(cube.up, scatter_y="a"),
        replace(cube.up, weight_in=("b", "c")),
        replace(cube.up, gather_x=Gather(axis="b", on="T")),
        replace(cube.up, weight_out=("b",)),
    ]
    for up in wrong:
        with pytest.raises(AssertionError):
            assert multiplied(cube.outer, up) == cube.inner


def test_new_file_in_modes_registers_a_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensor_new.py").write_text(
        "from dataclasses import replace\n"
        "from models.parallel.modes.serial import MODE as SERIAL\n"
        "MODE = replace(SERIAL, name='new')\n"
    )
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    assert set(registry.modes.__wrapped__()) == {*modes(), "new"}
    sys.modules.pop(f"{room.__name__}.tensor_new")


@pytest.mark.parametrize(
    ("mode", "size", "depth", "wanted"),
    [
        ("2d", 6, 1, [4, 9]),
        ("2d", 2, 1, [1, 4]),
        ("2d", 50, 1, [49, 64]),
        ("2.5d", 6, 2, [2, 8]),
        ("2.5d", 1, 3, [3]),
        ("3d", 9, 1, [8, 27]),
        ("3d", 1000, 1, [729, 1331]),
        ("serial", 4, 1, [1]),
        ("1d", 0, 1, [1]),
    ],
)
def test_nearest_sizes_are_the_next_legal_sizes(
    mode: str, size: int, depth: int, wanted: list[int]
) -> None:
    assert nearest_sizes(modes()[mode], size, depth) == wanted
