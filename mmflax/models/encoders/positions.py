"""Positions of image patches: fixed 2-D sin-cos tables, rotary ones, learned ones resized."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError


def sincos2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed table [h*w d], row by row: sin x, cos x, sin y, cos y (MoCo v3, Chen et al. 2021)."""
    if width % 4:
        raise MmflaxError(f"sincos2d positions need a width divisible by 4; found {width}.")
    y, x = np.mgrid[: grid[0], : grid[1]].astype(np.float32)
    quarter = width // 4
    frequency = temperature ** -(np.arange(quarter) / max(quarter - 1, 1))
    x, y = (np.outer(axis.ravel(), frequency) for axis in (x, y))
    return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1).astype(np.float32)


def rope2d(
    x: Float[Array, "b t h k"], grid: tuple[int, int], start: int = 0, temperature: float = 100.0
) -> Float[Array, "b t h k"]:
    """Queries or keys, turned by their place on the grid (Su et al. 2021, RoFormer).

    The first half of a head's pairs turns with the row, the second with the column ("axial", and
    its temperature: Heo et al. 2024, arXiv:2403.13298, sec. 3.1), so that a logit depends on the
    difference of the places alone. The grid's tokens begin at `start`; others are not turned.
    """
    if x.shape[-1] % 4:
        raise MmflaxError(
            f"rope2d positions need heads of a width divisible by 4; found {x.shape[-1]}: change "
            "width or num_heads."
        )
    quarter = x.shape[-1] // 4
    place = np.indices(grid).reshape(2, -1)
    frequency = temperature ** -(np.arange(quarter) / quarter)
    turned = np.concatenate([np.outer(axis, frequency) for axis in place], axis=1)
    angle = np.zeros((1, x.shape[1], 1, 2 * quarter), np.float32)
    angle[0, start : start + turned.shape[0], 0] = turned
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    pair = first * cos - second * sin, first * sin + second * cos
    return jnp.concatenate(pair, axis=-1).astype(x.dtype)


def resize_positions(
    table: Float[Array | np.ndarray, "n d"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    num_prefix: int = 1,
) -> Float[Array, "m d"]:
    """A learned table [prefix + h*w, d] resampled from one patch grid to another, differentiable.

    The numbers are those of PyTorch's `interpolate(mode="bicubic")`, which the published models
    use: Keys' cubic with a = -0.75, the border repeated, no smoothing when the grid shrinks. The
    first `num_prefix` rows (CLS) have no place on the grid and are kept. Equal grids return the
    table unchanged.
    """
    expected = num_prefix + old_grid[0] * old_grid[1]
    if table.shape[0] != expected:
        raise MmflaxError(
            f"the position table has {table.shape[0]} rows; a {old_grid[0]}x{old_grid[1]} grid "
            f"with {num_prefix} prefix rows has {expected}. Change old_grid or num_prefix."
        )
    if tuple(old_grid) == tuple(new_grid):
        return jnp.asarray(table)
    rows, columns = (
        jnp.asarray(_cubic_matrix(old, new), table.dtype)
        for old, new in zip(old_grid, new_grid, strict=True)
    )
    patches = jnp.asarray(table)[num_prefix:].reshape(*old_grid, table.shape[1])
    exact = jax.lax.Precision.HIGHEST
    patches = jnp.einsum("Hh,Ww,hwd->HWd", rows, columns, patches, precision=exact)
    return jnp.concatenate([table[:num_prefix], patches.reshape(-1, table.shape[1])])


def _cubic_matrix(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """[new old]: every new point from the four old ones around it; pixel centers at halves."""
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    matrix = np.zeros((new, old))
    for step in range(-1, 3):
        source = np.floor(place) + step
        x = np.abs(place - source)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        index = np.clip(source, 0, old - 1).astype(int)
        np.add.at(matrix, (np.arange(new), index), np.where(x <= 1, near, far))
    return matrix
