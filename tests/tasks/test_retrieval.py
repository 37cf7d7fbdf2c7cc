"""The retrieval task: what it trains, what it leaves out, and what a search gets from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.evaluation.modality_views import without_image, without_text
from mmflax.losses import contrastive
from mmflax.models.encoders import bert, clip_text, vit
from mmflax.models.fusion import bridge, co_attention
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.numerics import unit
from mmflax.tasks import retrieval
from mmflax.tasks.contrast import Temperature
from mmflax.tasks.inputs import pair_keys
from tests.toy_backbone import VOCAB, toy_backbone


def build(**fields):
    return retrieval.build(backbone=toy_backbone(), embed_dim=8, **fields)


def build_real(fusion=co_attention, **fields):
    sizes = dict(width=16, num_heads=2, depth=1, mlp_dim=32)
    backbone = VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, **sizes),
        bert.build(vocab_size=20, max_length=8, **sizes),
        fusion.build(**sizes),
    )
    return retrieval.build(backbone=backbone, embed_dim=8, **fields)


def batch_of(rows=4, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "image": jnp.asarray(rng.normal(size=(rows, 8, 8, 3)), jnp.float32),
        "tokens": jnp.asarray(rng.integers(5, 20, (rows, 5)), jnp.int32),
        "text_mask": jnp.asarray(np.arange(5) < rng.integers(2, 6, (rows, 1))),
        "mask": jnp.ones(rows, bool),
    }


@pytest.fixture(scope="module")
def batch():
    return batch_of()


@pytest.fixture(scope="module")
def fused(batch):
    """(task, parameters random enough that nothing is symmetric)."""
    task = build(fused=True)
    return task, random_params(task, batch)


def init(task, batch):
    return jax.jit(lambda key: task.model.init(key, batch, train=False))(jax.random.key(0))[
        "params"
    ]


def random_params(task, batch):
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    rng = np.random.default_rng(0)
    draw = jax.tree.map(lambda s: jnp.asarray(0.6 * rng.normal(size=s.shape), s.dtype), shapes)
    return draw["params"]


@functools.cache
def compiled(model, loss, metrics):
    def everything(params, batch, key):
        rngs = {} if key is None else {"dropout": key}
        outputs = model.apply({"params": params}, batch, train=key is not None, rngs=rngs)
        return outputs, loss(outputs, batch), metrics(outputs, batch)

    return jax.jit(everything)


def run(task, params, batch, key=None):
    """(outputs, loss, metrics); with a key, those of training."""
    return compiled(task.model, task.loss, task.metrics)(params, batch, key)


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@pytest.mark.parametrize("fields", [dict(loss="sigmoid"), dict(fused=True)])
def test_one_batch_is_learned(fields, batch):
    task = build(**fields)
    params = {"params": init(task, batch)}

    @jax.jit
    def step(params, key):
        def mean_loss(params):
            outputs = task.model.apply(params, batch, train=True, rngs={"dropout": key})
            return task.loss(outputs, batch).mean(), outputs

        (loss, outputs), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), loss, outputs

    losses = []
    for i in range(120):
        params, loss, outputs = step(params, jax.random.key(i))
        losses.append(float(loss))
    metrics = task.metrics(outputs, batch)
    assert losses[-1] < 0.3 * losses[0]
    np.testing.assert_array_equal(metrics["in_batch_recall/i2t"][0], 1)
    np.testing.assert_array_equal(metrics["in_batch_recall/t2i"][0], 1)
    if task.search.match:
        total, count = metrics["itm_accuracy"]
        assert (count == 3).all() and total.sum() >= 11


def test_a_dual_encoder_has_no_fusion_and_no_head(batch):
    shapes = jax.eval_shape(lambda: build_real().model.init(jax.random.key(0), batch, train=False))
    params = shapes["params"]
    assert set(params) == {
        "backbone", "image_projection", "text_projection", "temperature",
    }  # fmt: skip
    assert set(params["backbone"]) == {"image_encoder", "text_encoder"}
    assert set(params["temperature"]) == {"scale"}
    assert build().search.match is None


def test_fusion_head_and_bias_appear_when_asked(batch):
    task = build_real(fused=True, loss="sigmoid")
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), batch, train=False))
    assert {"fusion", "image_encoder"} <= set(shapes["params"]["backbone"])
    assert shapes["params"]["match_head"]["kernel"].shape == (32, 2)
    assert set(shapes["params"]["temperature"]) == {"scale", "bias"}


@pytest.mark.parametrize(
    ("loss", "scale", "bias"), [("clip", 1 / 0.07, 0.0), ("sigmoid", 10.0, -10.0)]
)
def test_start_of_temperature_and_bias(loss, scale, bias, batch):
    task = build(loss=loss)
    params = init(task, batch)
    outputs, losses, _ = run(task, params, batch)
    assert outputs["logit_scale"] == pytest.approx(scale, rel=1e-6)
    assert outputs["logit_bias"] == bias
    x, y = outputs["image_embedding"], outputs["text_embedding"]
    np.testing.assert_allclose(jnp.linalg.norm(x, axis=1), 1, rtol=1e-6)
    if loss == "clip":
        expected = contrastive.clip(x, y, jnp.asarray(scale, jnp.float32))
    else:
        args = (jnp.asarray(v, jnp.float32) for v in (scale, bias))
        expected = contrastive.sigmoid(x, y, *args)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_scale_stops_at_100(batch):
    task = build()
    params = init(task, batch)
    params["temperature"]["scale"] = jnp.asarray(20.0)
    outputs, _, _ = run(task, params, batch)
    assert outputs["logit_scale"] == pytest.approx(100)


def test_padding_rows_change_nothing_of_the_others(fused, batch):
    task, params = fused
    other = batch_of(seed=1)
    padded = {name: jnp.concatenate([batch[name], other[name]]) for name in batch}
    padded["mask"] = jnp.arange(8) < 4
    # Which negatives are drawn depends on the batch: compare what does not depend on a draw.
    task = build()
    params = {k: v for k, v in params.items() if k != "match_head"}
    params["backbone"] = {k: v for k, v in params["backbone"].items() if k != "fusion"}
    _, losses, metrics = run(task, params, padded)
    _, expected, expected_metrics = run(task, params, batch)
    same(losses[:4], expected)
    same(jax.tree.map(lambda v: v[:4], metrics), expected_metrics)
    assert (losses[4:] == 0).all() and (metrics["in_batch_recall/i2t"][1][4:] == 0).all()


def test_negatives_are_never_padding_nor_of_the_same_image(fused):
    """Rows 0 and 1 show one image, row 3 is padding: each of 0 and 1 has only row 2 left."""
    task, params = fused
    batch = batch_of() | {"image_key": jnp.asarray([7, 7, 8, 9], jnp.int32)}
    batch["mask"] = jnp.asarray([True, True, True, False])
    outputs, _, metrics = run(task, params, batch)
    np.testing.assert_array_equal(outputs["match_used"], [[True] * 3] * 3 + [[False] * 3])
    image = jax.jit(task.search.encode_image)(params, batch)
    text = jax.jit(task.search.encode_text)(params, batch)
    score = jax.jit(task.search.match)

    def match(i, j):
        rows = (
            {k: v[place][None] for k, v in side.items()} for side, place in ((image, i), (text, j))
        )
        return score(params, *rows)

    for row in (0, 1):
        expected = jnp.concatenate([match(row, row), match(row, 2), match(2, row)])
        logits = outputs["match"][row]
        same(logits[:, 1] - logits[:, 0], expected)
    alone = batch | {"image_key": jnp.full(4, 7, jnp.int32)}
    outputs, losses, metrics = run(task, params, alone)
    np.testing.assert_array_equal(metrics["itm_accuracy"][1], [1, 1, 1, 0])
    np.testing.assert_allclose(metrics["loss/contrastive"][0], 0, atol=1e-6)
    assert jnp.isfinite(losses).all()


def test_negatives_are_drawn_within_their_group(fused):
    """Groups of 2: the only possible negative of a row is its neighbor."""
    task, params = build(fused=True, negative_group=2), fused[1]
    batch = batch_of()
    outputs, _, _ = run(task, params, batch)
    swapped = {k: v.reshape(2, 2, *v.shape[1:])[:, ::-1].reshape(v.shape) for k, v in batch.items()}
    other_text, _, _ = run(task, params, swapped | {"image": batch["image"]})
    same(outputs["match"][:, 1], other_text["match"][:, 0])
    # 3 does not divide the batch of 4: 2 does.
    thirds, _, _ = run(build(fused=True, negative_group=3), params, batch)
    same(thirds["match"], outputs["match"])


def test_negatives_are_drawn_anew_in_training_and_fixed_in_evaluation(fused):
    task, params = fused
    batch = batch_of(16)

    def matches(key=None):
        return run(task, params, batch, key)[0]["match"]

    np.testing.assert_array_equal(matches(), matches())
    draws = [matches(jax.random.key(i)) for i in (0, 1)]
    same(draws[0][:, 0], draws[1][:, 0])
    assert (jnp.abs(draws[0] - draws[1])[:, 1:] > 1e-5).any()


@pytest.mark.parametrize("view", ["text", "image"])
def test_an_absent_modality_counts_nowhere_and_leaks_nothing(view, fused, batch):
    task, params = fused
    blind = without_image(batch, 5) if view == "text" else without_text(batch)
    outputs, losses, metrics = run(task, params, blind)
    assert (losses == 0).all() and not outputs["used"].any()
    assert all(float(count.sum()) == 0 for _, count in metrics.values())
    key = "image" if view == "text" else "tokens"
    other, _, _ = run(task, params, blind | {key: batch_of(seed=5)[key]})
    name = "image_embedding" if view == "text" else "text_embedding"
    np.testing.assert_array_equal(other[name], outputs[name])


def test_image_present_is_an_absent_image(fused, batch):
    task, params = fused
    present = batch | {"image_present": jnp.asarray([True, True, False, True])}
    outputs, losses, _ = run(task, params, present)
    np.testing.assert_array_equal(outputs["used"], present["image_present"])
    assert losses[2] == 0 and (losses[jnp.asarray([0, 1, 3])] > 0).all()


def test_search_gives_what_the_whole_model_gives(fused, batch):
    """Cached encoder outputs through `match` are the uncached forward pass."""
    task, params = fused
    outputs, _, _ = run(task, params, batch)
    image = jax.jit(task.search.encode_image)(params, batch)
    text = jax.jit(task.search.encode_text)(params, batch)
    same(image["embedding"], outputs["image_embedding"])
    same(text["embedding"], outputs["text_embedding"])
    logits = outputs["match"][:, 0]
    score = jax.jit(task.search.match)(params, image, text)
    same(score, logits[:, 1] - logits[:, 0])


def test_a_fusion_that_reads_the_encoders_layers_finds_them_in_the_cache(batch):
    task = build_real(fusion=bridge, fused=True)
    params = random_params(task, batch)
    outputs, _, _ = run(task, params, batch)
    image = jax.jit(task.search.encode_image)(params, batch)
    text = jax.jit(task.search.encode_text)(params, batch)
    assert image["layer_0"].shape == (4, 5, 16) and text["layer_0"].shape == (4, 5, 16)
    logits = outputs["match"][:, 0]
    same(jax.jit(task.search.match)(params, image, text), logits[:, 1] - logits[:, 0])
    encoded = task.model.backbone.apply(
        {"params": params["backbone"]}, batch["image"], batch["tokens"], batch["text_mask"],
        train=False,
    )  # fmt: skip
    head = params["match_head"]
    same(logits, encoded.pooled @ head["kernel"] + head["bias"][None])


def test_the_mesh_changes_nothing(fused):
    """Loss and metrics over 8 devices, ring and hard negatives included, equal one device's."""
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    task, params = fused
    batch = batch_of(16)
    mesh = Mesh(
        np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2
    )

    def step(params, batch):
        outputs = task.model.apply({"params": params}, batch, train=False)
        return task.loss(outputs, batch), task.metrics(outputs, batch)

    expected = jax.jit(step)(params, batch)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    with jax.set_mesh(mesh):
        found = jax.jit(step)(params, jax.device_put(batch, split))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def test_words_of_the_text_are_grounded_where_there_is_no_caption(batch):
    task = build(caption_words=0.5)
    params = random_params(task, batch)
    outputs, losses, metrics = run(task, params, batch)
    assert outputs["words"].shape == (4, 5, VOCAB)
    parts = {name: value for name, (value, _) in metrics.items() if name.startswith("loss/")}
    same(losses, parts["loss/contrastive"] + 0.5 * parts["loss/words"])
    captioned = batch | {"caption": batch["tokens"][:, :3] * 0 + 6,
                         "caption_mask": jnp.ones((4, 3), bool)}  # fmt: skip
    assert (jnp.abs(run(task, params, captioned)[1] - losses) > 1e-4).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(loss="clap"), "loss is 'clap'; expected one of clip, nt_xent, sigmoid"),
        (dict(temperature_init=0.0), "temperature_init is 0.0"),
        (dict(bias_init=1.0), "loss 'clip' has no bias"),
    ],
)
def test_bad_fields_are_one_sentence(fields, message):
    with pytest.raises(MmflaxError, match=message):
        build(**fields)


def test_modality_dropout_is_refused():
    backbone = toy_backbone().clone(modality_dropout=0.1)
    with pytest.raises(MmflaxError, match="modality_dropout is 0.1"):
        retrieval.build(backbone=backbone)


def build_pair(text=clip_text, image=(), **fields):
    sizes = dict(width=16, num_heads=2, depth=1, mlp_dim=32)
    backbone = VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, cls_token=False, pool="map", **sizes, **dict(image)),
        text.build(vocab_size=20, max_length=8, **sizes),
        co_attention.build(**sizes),
    )
    return retrieval.build(backbone=backbone, **{"embed_dim": 16, **fields})


def test_encoders_say_how_their_tokens_are_pooled(batch):
    task = build_pair(image_projection="none", text_projection="affine")
    assert (task.model.image_pool, task.model.text_pool) == ("map", "encoder")
    params = random_params(task, batch)
    assert {"image_head", "text_projection"} <= params.keys()
    assert "image_projection" not in params and "bias" in params["text_projection"]
    model = task.model.bind({"params": params})
    head = model.image_head(model.encode_image(batch, train=False)["tokens"], train=False)
    outputs, _, _ = run(task, params, batch)
    assert jnp.allclose(outputs["image_embedding"], unit(head), atol=1e-6)
    # What follows the token that ends a text does not matter to CLIP's encoder.
    ends = batch["text_mask"].sum(axis=1) - 1
    first = {**batch, "tokens": batch["tokens"].at[jnp.arange(4), ends].set(19)}
    last = {**first, "text_mask": jnp.ones((4, 5), bool)}
    last["tokens"] = jnp.where(batch["text_mask"], first["tokens"], 0)
    one, other = (run(task, params, each)[0]["text_embedding"] for each in (first, last))
    assert jnp.allclose(one, other, atol=1e-6)
    assert build_real().model.text_pool == "cls"


def test_an_encoder_without_projection_is_as_wide_as_the_embeddings(batch):
    task = build_pair(image_projection="none", embed_dim=8)
    with pytest.raises(MmflaxError, match="image encoder is 16 wide and task.embed_dim is 8"):
        init(task, batch)
    with pytest.raises(MmflaxError, match="image_projection"):
        init(build_pair(image_projection="square"), batch)


def test_the_scale_has_a_limit_that_it_can_leave():
    def scale(limit, value):
        module = Temperature(0.07, max_scale=limit)
        return jax.value_and_grad(lambda x: module.apply({"params": {"scale": x}})[0])(value)

    limit = jnp.log(100.0)
    for value in (limit, limit + 1.0):
        found, slope = scale(100.0, value)
        assert jnp.allclose(found, 100.0) and slope > 0  # a loss that grows with it brings it back
        _, slope = jax.value_and_grad(
            lambda x: -Temperature(0.07).apply({"params": {"scale": x}})[0]
        )(value)
        assert slope == 0  # one that falls with it leads it no further
    found, slope = scale(100.0, limit - 1.0)
    assert jnp.allclose(found, slope) and found < 100
    found, slope = scale(None, limit + 1.0)
    assert jnp.allclose(found, slope) and found > 100


def test_rows_with_the_same_words_are_no_negatives(batch):
    """Neither in the loss nor among the pairs that are matched; other padding is the same text."""
    tokens = batch["tokens"].at[1].set(batch["tokens"][0])
    tokens = tokens.at[1, -1].set(19)
    mask = batch["text_mask"].at[:2].set(jnp.arange(5) < 4)
    twins = batch | {"tokens": tokens, "text_mask": mask}
    keys = pair_keys(twins)
    assert keys.dtype == jnp.int32
    assert keys[0, 1] == keys[1, 1] and len(set(np.asarray(keys[:, 1]).tolist())) == 3
    assert len(set(np.asarray(keys[:, 0]).tolist())) == 4
    np.testing.assert_array_equal(pair_keys(twins | {"image_key": jnp.full(4, 7)})[:, 0], 7)
    task = build()
    outputs = task.model.init_with_output(jax.random.key(0), twins, train=False)[0]
    given = (outputs["image_embedding"], outputs["text_embedding"], outputs["logit_scale"])
    want = contrastive.clip(*given, keys=jnp.array([3, 3, 1, 2]))
    np.testing.assert_allclose(task.loss(outputs, twins), want, rtol=1e-6)
    apart = contrastive.clip(*given)
    assert np.all(np.asarray(want[:2]) < np.asarray(apart[:2]))


def test_the_key_of_a_text_is_its_words_in_their_order():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 30_000, (20_000, 8)).astype(np.int32)
    tokens[:, :5] = 7  # alike but for the last three
    tokens[10_000:] = tokens[:10_000, ::-1]
    mask = rng.random(tokens.shape) < 0.9
    keys = pair_keys({"tokens": jnp.asarray(tokens), "text_mask": jnp.asarray(mask)})
    texts = {(*row[used], *np.flatnonzero(used)) for row, used in zip(tokens, mask, strict=True)}
    assert len(set(np.asarray(keys[:, 1]).tolist())) == len(texts)
