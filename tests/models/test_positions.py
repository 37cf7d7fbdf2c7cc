"""Learned positions on another grid: one resampler for models and for runs that start from them."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.models.encoders import clip_vision, patches, swin, vit
from mmflax.models.encoders.positions import resize_positions

# (old grid, new grid) -> what torch 2.13 gives for `numbers(old)` by `interpolate(mode="bicubic")`.
TORCH = {
    ((4, 4), (3, 3)): [1.6898, 5.8865, 4.664, 5.837, 2.9688, 0.6225, 8.6997, 2.6609, 3.0854],
    ((2, 3), (3, 2)): [2.3443, 3.4337, 3.9512, 3.1426, 5.558, 2.8515],
    ((4, 4), (1, 5)): [7.1476, 1.9331, 2.9688, 4.2376, -0.586],
}  # fmt: skip
# … and by `interpolate(mode="bilinear", align_corners=True)`, from 4x4 to 3x6.
TORCH_CORNERS = [
    0, 6, 8.2, 2.8, 3, 6, 6.5, 3.5, 2.2, 4.3, 3.2, 0.5, 10, 4.6, 2, 5, 4.8, 3,
]  # fmt: skip


def numbers(grid):
    return np.array([(7 * i * i + 3 * i) % 11 for i in range(grid[0] * grid[1])], np.float32)


@pytest.mark.parametrize("grids", TORCH)
def test_the_recorded_numbers_of_torch(grids):
    table = np.concatenate([[100.0], numbers(grids[0])]).astype(np.float32)[:, None]
    found = resize_positions(table, *grids)[:, 0]
    np.testing.assert_allclose(found, [100.0, *TORCH[grids]], atol=1e-4)


def test_corners_stay_corners_in_vilt():
    encoder = patches.build(width=1, patch_size=4, image_size=(12, 24))
    table = np.concatenate([[100.0], numbers((4, 4))]).astype(np.float32)[:, None]
    found = encoder.resize_table(table, (4, 4))[:, 0]
    np.testing.assert_allclose(found, [100.0, *TORCH_CORNERS], atol=1e-5)


ENCODERS = {
    "vit": lambda size: vit.build(
        image_size=size, width=8, depth=1, num_heads=2, mlp_dim=8, patch_size=4, any_size=True
    ),
    "clip": lambda size: clip_vision.build(
        image_size=size, width=8, depth=1, num_heads=2, mlp_dim=8, patch_size=4, any_size=True
    ),
    "patches": lambda size: patches.build(width=8, patch_size=4, image_size=size),
    "swin": lambda size: swin.build(
        image_size=size, width=8, depths=(1, 1), num_heads=(2, 2), window_size=2, patch_size=4,
        position="learned",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(24, 8), (12, 20)])
def test_a_resized_table_gives_what_the_model_itself_does(zoo, name, size):
    """The same image in the model of the old size and in one of the new with the table moved."""
    old, new = ENCODERS[name]((16, 24)), ENCODERS[name](size)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    params = zoo.params(old, jnp.zeros((1, 16, 24, 3)), train=False)
    table = np.random.default_rng(1).normal(size=params["position_embedding"].shape)
    params = {**params, "position_embedding": jnp.asarray(table, jnp.float32)}
    expected = zoo.run(old, params, image, train=False)
    moved = new.resize_table(params["position_embedding"], old.position_grid())
    found = zoo.run(new, {**params, "position_embedding": moved}, image, train=False)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parity
def test_torch_resamples_so():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for old in ((7, 7), (4, 4), (3, 5), (24, 24)):
        table = rng.normal(size=(old[0] * old[1] + 1, 3)).astype(np.float32)
        x = torch.tensor(table[1:]).reshape(1, *old, 3).permute(0, 3, 1, 2)
        for new in ((1, 1), (1, 9), (2, 3), (6, 7), (13, 14), (24, 24), (38, 39), (5, 61)):
            y = torch.nn.functional.interpolate(x, size=new, mode="bicubic", align_corners=False)
            expected = y.permute(0, 2, 3, 1).reshape(-1, 3).numpy()
            found = np.asarray(resize_positions(table, old, new))
            scale = np.abs(expected).max()
            assert np.abs(found[1:] - expected).max() < 1e-5 * scale, (old, new)
            np.testing.assert_array_equal(found[0], table[0])
