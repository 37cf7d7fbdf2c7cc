"""Layer-wise learning-rate decay: every parameter's depth below the head, in loops and scans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths
from mmflax.errors import MmflaxError
from mmflax.training import optim
from mmflax.training.layer_decay import layer_factors
from tests.hints import hints


def shapes(*names, **scanned):
    found = {name: jax.ShapeDtypeStruct((2, 2), np.float32) for name in names}
    return found | {k: jax.ShapeDtypeStruct((n, 2, 2), np.float32) for k, n in scanned.items()}


IMAGE, TEXT, FUSION = (f"backbone/{p}" for p in ("image_encoder", "text_encoder", "fusion"))
TREE = shapes(
    f"{IMAGE}/patch_embedding/kernel", f"{IMAGE}/pre_norm_layer/scale",
    f"{IMAGE}/encoder/layers_0/mlp/fc1/kernel", f"{IMAGE}/encoder/layers_1/mlp/fc1/kernel",
    f"{IMAGE}/norm/scale",
    f"{TEXT}/word_embedding/embedding", f"{TEXT}/embedding_norm/scale",
    f"{TEXT}/encoder/layers_0/mlp_norm/scale", f"{TEXT}/pooler/kernel",
    f"{FUSION}/image_projection/kernel", f"{FUSION}/type_embedding/embedding",
    *(f"{FUSION}/encoder/layers_{i}/image/mlp/fc1/kernel" for i in range(3)),
    f"{FUSION}/text_pooler/dense/kernel", "head/fc1/kernel",
)  # fmt: skip


def depths(tree, decay=0.5):
    """path -> how often the rate was halved."""
    factors = layer_factors(tree, decay)
    return {path: -np.log2(factors.get(path, 1.0)) for path in tree}


def test_the_rate_falls_from_the_head_to_the_embeddings():
    assert list(depths(TREE).values()) == [
        6, 6, 5, 4, 3,  # three layers of the fusion are above
        5, 5, 4, 3,
        4, 4, 3, 2, 1, 0, 0,
    ]  # fmt: skip


def test_a_part_of_its_own_starts_at_its_own_top():
    """Where the fusion is new and not decayed."""
    found = depths(TREE, (("/image_encoder/", 0.5), ("/text_encoder/", 0.25)))
    assert list(found.values()) == [3, 3, 2, 1, 0, 4, 4, 2, 0, *[0] * 7]


def test_a_scan_has_the_loops_factors():
    loop = layer_factors(TREE, 0.7)
    name = f"{FUSION}/encoder/layers/image/mlp/fc1/kernel"
    tree = {path: leaf for path, leaf in TREE.items() if "/fusion/encoder/" not in path}
    found = layer_factors(tree | shapes(**{name: 3}), 0.7)
    assert found[name].shape == (3, 1, 1)
    each = [loop[name.replace("layers", f"layers_{i}")] for i in range(3)]
    np.testing.assert_allclose(found.pop(name).ravel(), each, rtol=1e-6)
    assert found == {path: factor for path, factor in loop.items() if path in tree}


@pytest.mark.parametrize(
    "names",
    [
        ["patch_embedding", "stage_0/layers_0", "stage_0/layers_1", "merging_0/norm",
         "stage_1/layers_0", "norm"],
        ["stem/conv", "stage_0_block_0/conv_1", "stage_0_block_1/conv_0", "stage_1_block_0/conv_2",
         "stage_1_block_1/conv_0"],
        ["stem_norm", "blocks_0/fc1", "blocks_1/fc1", "blocks_10/fc2"],
        ["conv_0_0", "conv_0_1", "conv_1_0"],
    ],
)  # fmt: skip
def test_stages_are_one_sequence(names):
    values = list(depths(shapes(*(f"image_encoder/{name}/kernel" for name in names))).values())
    assert values == sorted(values, reverse=True) and len(set(values)) == len(values)


@pytest.mark.parametrize("stem", ["conv_stem/conv_{}", "resnet_stem/stage_{}_block_0/conv_1"])
def test_a_stem_lies_below_the_layers(stem):
    names = [*(stem.format(i) for i in range(3)), "encoder/layers_0/w", "encoder/layers_1/w"]
    tree = shapes(*(f"image_encoder/{name}/kernel" for name in names))
    assert list(depths(tree).values()) == [3, 3, 3, 2, 1]


def test_connections_and_the_layers_between_them():
    names = ["connection_0/image", "image_0/layers_0", "text_0/layers_0", "connection_1/text",
             "image_1/layers_0", "text_pooler"]  # fmt: skip
    tree = shapes(*(f"fusion/{name}/kernel" for name in names))
    assert list(depths(tree).values()) == [4, 3, 3, 2, 1, 0]


def test_patches_without_layers_lie_below_the_fusion():
    tree = shapes("image_encoder/cls", "fusion/encoder/layers_0/w", "decoder/layers_0/w", "head/w")
    assert list(depths(tree).values()) == [3, 2, 1, 0]


def test_updates_are_times_the_factor_and_the_multiplier():
    params = paths.nested({path: jnp.ones(leaf.shape) for path, leaf in TREE.items()})
    fields = dict(schedule=dict(name="constant", peak=1.0), name="sgd", momentum=0.0)
    tx, _ = optim.build(params, **fields, layer_decay=0.5, lr_multipliers=((r"(^|/)fusion/", 5.0),))
    updates, _ = tx.update(params, tx.init(params), params)
    flat = paths.leaves(updates)
    assert float(flat[f"{IMAGE}/patch_embedding/kernel"][0, 0]) == pytest.approx(-(0.5**6))
    assert float(flat[f"{FUSION}/encoder/layers_2/image/mlp/fc1/kernel"][0, 0]) == -2.5
    assert float(flat["head/fc1/kernel"][0, 0]) == -1.0


@pytest.mark.parametrize(
    ("decay", "words"),
    [
        (0, "has 0; expected a number above 0"),
        (1.5, "has 1.5"),
        (True, "is True; expected a number"),
        (("image_encoder", 0.8), "is .'image_encoder', 0.8.; expected"),
        ((("image_(", 0.8),), "'image_.', which is no regex"),
        ((("image_encodr/", 0.8),), "'image_encodr/' decides no parameter .paths look like 'back"),
    ],
)
def test_errors(decay, words):
    with pytest.raises(MmflaxError, match=words) as error:
        layer_factors(TREE, decay)
    assert all("layer_decay" in word for word in hints(error.value))
