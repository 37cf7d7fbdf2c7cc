"""The bridge: which encoder layers it reads, in which order, and BridgeTower's own numbers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert, vit
from mmflax.models.encoders.base import ImageEncoderBase
from mmflax.models.fusion import bridge, concat
from mmflax.models.layers.stack import stack_layers
from mmflax.models.vision_language import VisionLanguageModel

SIZES = dict(width=16, num_heads=4, mlp_dim=32)


def whole(*, image_depth=3, text_depth=2, fusion=bridge, own=(), **fields):
    return VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, depth=image_depth, **SIZES, **fields),
        bert.build(vocab_size=30, max_length=16, depth=text_depth, **SIZES, **fields),
        fusion.build(depth=2, **SIZES, **fields, **dict(own)),
    )


def test_the_model_hands_over_the_last_layers_in_order(zoo):
    """The bridge on what the encoders give by themselves is the bridge inside the model."""
    model, inputs = whole(), zoo.inputs()
    params = zoo.params(model, **inputs, train=False)
    encoded = zoo.run(model, params, **inputs, train=False)
    image, images = zoo.run(
        model.image_encoder, params["image_encoder"], inputs["image"], layers=2, train=False
    )
    text, texts = zoo.run(
        model.text_encoder, params["text_encoder"], inputs["tokens"], inputs["text_mask"],
        layers=2, train=False,
    )  # fmt: skip

    @jax.jit
    def fuse(images, texts):
        streams = (image, text, None, inputs["text_mask"])
        layers = dict(image_layers=images, text_layers=texts)
        fused = model.fusion.apply({"params": params["fusion"]}, *streams, **layers, train=False)
        return fused.pooled

    np.testing.assert_allclose(encoded.image_tokens, image, atol=1e-5)
    np.testing.assert_allclose(encoded.text_tokens, text, atol=1e-5)
    np.testing.assert_allclose(fuse(images, texts), encoded.pooled, atol=1e-5)
    for other in ((images[::-1], texts), (images, texts[::-1])):
        assert (jnp.abs(fuse(*other) - encoded.pooled).max(axis=1) > 1e-3).all()


@pytest.mark.parametrize("link", bridge.LINKS)
def test_scan_equals_loop(zoo, link):
    own = dict(link=link, bridge_epsilon=1e-5, share_projections=link == "add")
    loop, scan = whole(own=own), whole(own=own, scan_layers=True, remat="dots")
    inputs = zoo.inputs()
    params = zoo.params(loop, **inputs, train=False)
    expected = zoo.run(loop, params, **inputs, train=False)
    found = zoo.run(scan, stack_layers(params), **inputs, train=False)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-5)
    np.testing.assert_allclose(found.image, expected.image, atol=2e-5)


def test_encoders_must_be_as_deep(zoo):
    with pytest.raises(MmflaxError, match="last 2 layers were requested, but there are 1"):
        zoo.params(whole(text_depth=1), **zoo.inputs(), train=False)


class Flat(ImageEncoderBase):
    """An image encoder that has no layers to give."""

    @nn.compact
    def __call__(self, image, *, train):
        return nn.Dense(16)(image.reshape(image.shape[0], -1, 12))


def test_encoders_must_give_their_layers(zoo):
    model = whole().copy(image_encoder=Flat())
    with pytest.raises(MmflaxError, match="last 2 layers of each encoder, which Flat"):
        zoo.params(model, **zoo.inputs(), train=False)
    model = whole(fusion=concat).copy(image_encoder=Flat())
    zoo.params(model, **zoo.inputs(), train=False)


def test_layers_must_be_as_many(zoo):
    x = jnp.ones((2, 3, 16))
    with pytest.raises(MmflaxError, match="has 2 layers and was given 0 image_layers"):
        zoo.params(bridge.build(depth=2, **SIZES), x, x, train=False)
    with pytest.raises(MmflaxError, match="has 2 layers and was given 1 text_layers"):
        layers = dict(image_layers=(x, x), text_layers=(x,))
        zoo.params(bridge.build(depth=2, **SIZES), x, x, **layers, train=False)


@pytest.mark.parity
def test_bridge_equals_transformers(zoo):
    """On the hidden layers of transformers' own encoders, from the same random weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    common = dict(
        hidden_size=16, num_attention_heads=4, num_hidden_layers=3, layer_norm_eps=1e-12,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    config = transformers.BridgeTowerConfig(
        hidden_size=16, num_hidden_layers=2, layer_norm_eps=1e-12,
        text_config=dict(
            vocab_size=30, intermediate_size=32, max_position_embeddings=20, pad_token_id=1,
            **common,
        ),
        vision_config=dict(
            hidden_size=64, num_hidden_layers=3, patch_size=4, image_size=8, layer_norm_eps=1e-12
        ),
    )  # fmt: skip
    theirs = transformers.BridgeTowerModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.2
            scale = "norm" in name.lower() and name.endswith("weight")
            weight.copy_(noise + 1.0 if scale else noise)

    def array(weight):
        return jnp.asarray(weight.detach().numpy())

    def dense(linear):
        return {"kernel": array(linear.weight).T, "bias": array(linear.bias)}

    def norm(layer):
        return {"scale": array(layer.weight), "bias": array(layer.bias)}

    def attention(part):
        out = dense(part.output.dense)
        return {
            name: {
                "kernel": array(linear.weight).T.reshape(16, 4, 4),
                "bias": array(linear.bias).reshape(4, 4),
            }
            for name, linear in (
                ("query", part.self.query), ("key", part.self.key), ("value", part.self.value)
            )
        } | {"out": {**out, "kernel": out["kernel"].reshape(4, 4, 16)}}  # fmt: skip

    def block(layer):
        return {
            "attention": attention(layer.attention),
            "attention_norm": norm(layer.attention.output.LayerNorm),
            "cross_attention": attention(layer.crossattention),
            "cross_attention_norm": norm(layer.crossattention.output.LayerNorm),
            "mlp": {"fc1": dense(layer.intermediate.dense), "fc2": dense(layer.output.dense)},
            "mlp_norm": norm(layer.output.LayerNorm),
        }

    def bridges(stream, i):
        first = getattr(theirs, f"cross_modal_{stream}_layernorm")
        return norm(first if i == 0 else getattr(theirs, f"cross_modal_{stream}_link_tower")[
            i - 1
        ].LayerNorm)  # fmt: skip

    params = {
        "image_projection": dense(theirs.cross_modal_image_transform),
        "text_projection": dense(theirs.cross_modal_text_transform),
        "type_embedding": {"embedding": array(theirs.token_type_embeddings.weight)},
        "image_pooler": {"dense": dense(theirs.cross_modal_image_pooler.dense)},
        "text_pooler": {"dense": dense(theirs.cross_modal_text_pooler.dense)},
        "encoder": {
            f"layers_{i}": {
                "image_bridge": bridges("image", i),
                "text_bridge": bridges("text", i),
                "image": block(theirs.cross_modal_image_layers[i]),
                "text": block(theirs.cross_modal_text_layers[i]),
            }
            for i in range(2)
        },
    }
    rng = np.random.default_rng(0)
    mask = np.arange(6) < np.asarray([[6], [3]])
    tokens = np.where(mask, rng.integers(2, 30, (2, 6)), 1)
    pixels = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens),
            attention_mask=torch.tensor(mask).long(),
            pixel_values=torch.tensor(pixels),
            output_hidden_states=True,
        )
        texts, images, _ = expected.hidden_states
        images = [theirs.vision_model.visual.forward_post(x).numpy() for x in images[-2:]]
    images = tuple(jnp.asarray(x) for x in images)
    texts = tuple(jnp.asarray(x.numpy()) for x in texts[-2:])
    found = zoo.run(
        bridge.build(depth=2, width=16, num_heads=4, mlp_dim=32),
        params,
        images[-1],
        texts[-1],
        None,
        jnp.asarray(mask),
        image_layers=images,
        text_layers=texts,
        train=False,
    )
    np.testing.assert_allclose(found.image, expected.image_features.numpy(), atol=2e-5)
    np.testing.assert_allclose(found.text[mask], expected.text_features.numpy()[mask], atol=2e-5)
    np.testing.assert_allclose(found.pooled, expected.pooler_output.numpy(), atol=2e-5)
