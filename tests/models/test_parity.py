"""The layers compute what transformers' PyTorch models compute, from the same random weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.models.encoders import bert, vit
from mmflax.models.fusion.co_attention import CoAttentionLayer
from mmflax.models.layers.config import LayerConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

WIDTH, HEADS, MLP = 16, 4, 32
COMMON = dict(
    hidden_size=WIDTH,
    num_attention_heads=HEADS,
    intermediate_size=MLP,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
SIZES = dict(width=WIDTH, num_heads=HEADS, mlp_dim=MLP, depth=2)


def randomized(module):
    """Every weight random: untrained norms and biases would hide a mistake."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * 0.3
            weight.copy_(noise + 1.0 if "norm" in name.lower() and "weight" in name else noise)
    return module.eval()


def array(weight):
    return jnp.asarray(weight.detach().numpy())


def dense(linear):
    return {"kernel": array(linear.weight).T, "bias": array(linear.bias)}


def conv(layer):
    return {"kernel": array(layer.weight).transpose(2, 3, 1, 0)}


def norm(layer):
    return {"scale": array(layer.weight), "bias": array(layer.bias)}


def attention(query, key, value, out):
    def into_heads(linear):
        return {
            "kernel": array(linear.weight).T.reshape(WIDTH, HEADS, -1),
            "bias": array(linear.bias).reshape(HEADS, -1),
        }

    out = dense(out)
    return {
        "query": into_heads(query),
        "key": into_heads(key),
        "value": into_heads(value),
        "out": {**out, "kernel": out["kernel"].reshape(HEADS, -1, WIDTH)},
    }


def bert_self(part, output):
    return attention(part.query, part.key, part.value, output.dense)


def bert_layer(layer):
    return {
        "attention": bert_self(layer.attention.self, layer.attention.output),
        "attention_norm": norm(layer.attention.output.LayerNorm),
        "mlp": {"fc1": dense(layer.intermediate.dense), "fc2": dense(layer.output.dense)},
        "mlp_norm": norm(layer.output.LayerNorm),
    }


def test_bert_equals_transformers(zoo):
    config = transformers.BertConfig(
        **COMMON, num_hidden_layers=2, vocab_size=30, max_position_embeddings=12
    )
    theirs = randomized(transformers.BertModel(config))
    tables = theirs.embeddings
    params = {
        "word_embedding": {"embedding": array(tables.word_embeddings.weight)},
        "position_embedding": {"embedding": array(tables.position_embeddings.weight)},
        "token_type_embedding": {"embedding": array(tables.token_type_embeddings.weight)},
        "embedding_norm": norm(tables.LayerNorm),
        "encoder": {f"layers_{i}": bert_layer(x) for i, x in enumerate(theirs.encoder.layer)},
        "pooler": {"dense": dense(theirs.pooler.dense)},
    }
    model = bert.build(**SIZES, vocab_size=30, max_length=12)
    tokens = np.random.default_rng(0).integers(1, 30, (3, 7)).astype(np.int32)
    types = (np.arange(7) > 3).astype(np.int32)[None].repeat(3, 0)
    mask = np.arange(7) < np.asarray([[7], [4], [1]])

    def encode_and_pool(module, *inputs):
        text = module(*inputs, train=False)
        return text, module.pool(text)

    text, pooled = zoo.run(
        model,
        params,
        jnp.asarray(tokens),
        jnp.asarray(mask),
        jnp.asarray(types),
        method=encode_and_pool,
    )
    with torch.no_grad():
        expected = theirs(
            input_ids=torch.tensor(tokens).long(),
            attention_mask=torch.tensor(mask).long(),
            token_type_ids=torch.tensor(types).long(),
        )
    np.testing.assert_allclose(text[mask], expected.last_hidden_state.numpy()[mask], atol=1e-5)
    np.testing.assert_allclose(pooled, expected.pooler_output.numpy(), atol=1e-5)


def vit_params(theirs):
    """Of transformers' ViTModel of two layers: those of ours, and its patch embedding's."""
    weights = dict(theirs.named_parameters())

    def linear(name):
        pair = {kind: weights[f"{name}.{kind}"] for kind in ("weight", "bias")}
        return type("Linear", (), pair)

    def first(*names):
        (found,) = {name for name in names if f"{name}.weight" in weights}
        return linear(found)

    def layer(i):
        # The names changed in transformers 5.
        old, new = f"encoder.layer.{i}", f"layers.{i}"
        return {
            "attention": attention(
                *(
                    first(f"{old}.attention.attention.{part}", f"{new}.attention.{short}_proj")
                    for part, short in (("query", "q"), ("key", "k"), ("value", "v"))
                ),
                first(f"{old}.attention.output.dense", f"{new}.attention.o_proj"),
            ),
            "attention_norm": norm(first(f"{old}.layernorm_before", f"{new}.layernorm_before")),
            "mlp_norm": norm(first(f"{old}.layernorm_after", f"{new}.layernorm_after")),
            "mlp": {
                "fc1": dense(first(f"{old}.intermediate.dense", f"{new}.mlp.fc1")),
                "fc2": dense(first(f"{old}.output.dense", f"{new}.mlp.fc2")),
            },
        }

    patch = linear("embeddings.patch_embeddings.projection")
    params = {
        "cls": array(weights["embeddings.cls_token"]),
        "position_embedding": array(weights["embeddings.position_embeddings"])[0],
        "encoder": {f"layers_{i}": layer(i) for i in range(2)},
        "norm": norm(linear("layernorm")),
    }
    return params, {**conv(patch), "bias": array(patch.bias)}


def test_vit_equals_transformers(zoo):
    config = transformers.ViTConfig(
        **COMMON, num_hidden_layers=2, image_size=12, patch_size=4, layer_norm_eps=1e-6
    )
    theirs = randomized(transformers.ViTModel(config, add_pooling_layer=False))
    params, patch = vit_params(theirs)
    model = vit.build(**SIZES, image_size=12, patch_size=4)
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    found = zoo.run(model, {**params, "patch_embedding": patch}, jnp.asarray(image), train=False)
    with torch.no_grad():
        expected = theirs(pixel_values=torch.tensor(image).permute(0, 3, 1, 2))
    np.testing.assert_allclose(found, expected.last_hidden_state.numpy(), atol=1e-5)


def bit_params(theirs):
    """Of transformers' BitModel, whose blocks are those of its ViT hybrid."""
    root = theirs.embedder
    params = {"conv": conv(root.convolution), "norm": norm(root.norm)}
    for stage, blocks in enumerate(theirs.encoder.stages):
        for i, block in enumerate(blocks.layers):
            ours = {}
            for j in range(3):
                ours[f"conv_{j}"] = conv(getattr(block, f"conv{j + 1}"))
                ours[f"norm_{j}"] = norm(getattr(block, f"norm{j + 1}"))
            if block.downsample is not None:
                ours["conv_shortcut"] = conv(block.downsample.conv)
                ours["norm_shortcut"] = norm(block.downsample.norm)
            params[f"stage_{stage}_block_{i}"] = ours
    return params


@pytest.mark.parametrize(("depths", "patch"), [((2, 1), 1), ((1, 2, 1), 1), ((1,), 2)])
def test_hybrid_vit_equals_transformers(zoo, depths, patch):
    """Their hybrid is a ViTModel on the map of a BitModel, which transformers 5 has one by one.

    What it calls a patch is of the map's pixels; 1 in its published checkpoints.
    """
    bit = transformers.BitConfig(
        embedding_size=32,
        hidden_sizes=[128 * 2**stage for stage in range(len(depths))],
        depths=list(depths),
        layer_type="bottleneck",
        global_padding="same",
        embedding_dynamic_padding=True,
    )
    side = patch * 2 ** (1 + len(depths))
    config = transformers.ViTConfig(
        **COMMON,
        num_hidden_layers=2,
        image_size=(3 * patch, 2 * patch),
        patch_size=patch,
        num_channels=bit.hidden_sizes[-1],
        layer_norm_eps=1e-6,
    )
    resnet = randomized(transformers.BitModel(bit))
    theirs = randomized(transformers.ViTModel(config, add_pooling_layer=False))
    params, embedding = vit_params(theirs)
    params["resnet_stem"] = {**bit_params(resnet), "patch_embedding": embedding}
    size = 3 * side, 2 * side
    model = vit.build(
        **SIZES, image_size=size, patch_size=side, stem="resnet", stem_depths=depths, stem_width=32
    )
    image = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    found = zoo.run(model, params, jnp.asarray(image), train=False)
    with torch.no_grad():
        features = resnet(torch.tensor(image).permute(0, 3, 1, 2)).last_hidden_state
        expected = theirs(pixel_values=features).last_hidden_state.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_lxmert_layer_equals_transformers(zoo):
    from transformers.models.lxmert.modeling_lxmert import LxmertXLayer

    theirs = randomized(LxmertXLayer(transformers.LxmertConfig(**COMMON)))
    cross = theirs.visual_attention
    params = {
        "cross_attention": bert_self(cross.att, cross.output),
        "cross_attention_norm": norm(cross.output.LayerNorm),
    }
    for ours, short, intermediate, output in (
        ("image", "visn", theirs.visn_inter, theirs.visn_output),
        ("text", "lang", theirs.lang_inter, theirs.lang_output),
    ):
        own = getattr(theirs, f"{short}_self_att")
        params[ours] = {
            "attention": bert_self(own.self, own.output),
            "attention_norm": norm(own.output.LayerNorm),
            "mlp": {"fc1": dense(intermediate.dense), "fc2": dense(output.dense)},
            "mlp_norm": norm(output.LayerNorm),
        }
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(2, n, WIDTH)).astype(np.float32) for n in (5, 4))
    mask = np.asarray([[True] * 4, [True, True, False, False]])
    config = LayerConfig(HEADS, MLP, norm_style="post", epsilon=1e-12)
    layer = CoAttentionLayer(config, form="lxmert")
    found_image, found_text = zoo.run(
        layer,
        params,
        (jnp.asarray(image), jnp.asarray(text)),
        None,
        jnp.asarray(mask)[:, None, None],
        train=False,
    )
    hidden = torch.tensor(np.where(mask, 0.0, -1e4)[:, None, None].astype(np.float32))
    with torch.no_grad():
        expected = theirs(torch.tensor(text), hidden, torch.tensor(image), None)
    np.testing.assert_allclose(found_text[mask], expected[0].numpy()[mask], atol=1e-5)
    np.testing.assert_allclose(found_image, expected[1].numpy(), atol=1e-5)
