"""Products and convolutions in the forms that XLA's CPU backend does well."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mmflax.platform import platform


def widening_product(
    x: Float[Array, "*b d"], kernel: Float[Array, "d e"], dimension_numbers: Any, **options: Any
) -> Float[Array, "*b e"]:
    """`lax.dot_general` for a dense layer whose output is wider than its input.

    JAX differentiates by the kernel as (grad^T x)^T, which takes XLA's CPU backend 2.5 times as
    long as x^T grad when e is 4 d. Other shapes and backends have nothing to gain.
    """
    if platform() != "cpu":
        return jax.lax.dot_general(x, kernel, dimension_numbers, **options)
    return _product(x, kernel)


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l c d"],
    strides: Any,
    padding: Any,
    **more: Any,
) -> Float[Array, "b i j d"]:
    """`lax.conv_general_dilated` for a `nn.Conv` without groups and dilation.

    XLA's CPU backend takes 1.4 times as long for it and its derivatives as for the same as one
    product of gathered pixels; other backends have their own kernels.
    """
    if platform() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **more)
    return product_form(x, kernel, strides, padding)


def product_form(
    x: Float[Array, "b h w c"], kernel: Float[Array, "k l c d"], strides: Any, padding: Any
) -> Float[Array, "b i j d"]:
    """The convolution as one product of the pixels under every place of the kernel (im2col)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    sides = kernel.shape[:2]
    rows, columns = (
        (size - side) // stride + 1
        for size, side, stride in zip(x.shape[1:3], sides, strides, strict=True)
    )
    if sides == tuple(strides):  # nothing overlaps
        x = x[:, : rows * sides[0], : columns * sides[1]]
        x = x.reshape(x.shape[0], rows, sides[0], columns, sides[1], -1).swapaxes(2, 3)
        pixels = x.reshape(*x.shape[:3], -1)
    else:
        ends = (rows - 1) * strides[0] + 1, (columns - 1) * strides[1] + 1
        shifted = [
            x[:, i : i + ends[0] : strides[0], j : j + ends[1] : strides[1]]
            for i in range(sides[0])
            for j in range(sides[1])
        ]
        pixels = jnp.concatenate(shifted, axis=-1)
    flat = kernel.reshape(-1, kernel.shape[-1])
    return widening_product(pixels, flat, (((3,), (0,)), ((), ())))


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    return _contract(x, kernel, (x.ndim - 1,), (0,))


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(saved: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = saved
    rows = tuple(range(x.ndim - 1))
    return _contract(grad, kernel, (grad.ndim - 1,), (1,)), _contract(x, grad, rows, rows)


def _contract(left: Array, right: Array, over: tuple[int, ...], with_: tuple[int, ...]) -> Array:
    return jax.lax.dot_general(left, right, ((over, with_), ((), ())))


_product.defvjp(_forward, _backward)
