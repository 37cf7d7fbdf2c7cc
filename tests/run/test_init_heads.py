"""Pretraining starts from a published MLM head: the first logits are the checkpoint's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax import paths, registry
from mmflax.losses.masked import mask_words
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.pretrained.families import fields_of
from mmflax.pretrained.inspect import FAMILIES, LazyArray, read_config
from mmflax.pretrained.tensors import open_tensors
from mmflax.run import init_from, init_sources
from mmflax.tasks import pretraining
from tests.pretrained import cases

MASK = 4
SCORE = ("mlm_score.transform.dense.weight", "mlm_score.decoder.weight", "mlm_score.bias")
# family: (recorded checkpoint, what its file would hold besides, tied?, epsilon, output)
HEADS = {
    "lxmert": ("lxmert-pretraining", (), True, 1e-12, "prediction_logits"),
    "vilt tied": ("vilt-plain", SCORE[:1], True, 1e-12, "logits"),
    "vilt": ("vilt-plain", SCORE[:2], False, 1e-12, "logits"),
    "meter": ("meter-vqa", SCORE, False, 1e-12, "logits"),
}
PARTS = ("image_encoder", "text_encoder", "fusion")


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("case", HEADS)
def test_the_first_logits_are_those_of_the_checkpoint(case, monkeypatch):
    recorded, more, tied, epsilon, output = HEADS[case]
    directory, batch, _ = cases.load_golden(recorded)
    config = read_config(directory)
    names = [name for name in open_tensors(directory) if not name.startswith("vqa_classifier")]
    model = registry.build(FAMILIES, "model", fields_of(case.split()[0], config, [*names, *more]))
    batch = {key: jnp.asarray(x) for key, x in batch.items() if key != "token_types"}
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: model.init(key, batch)["params"], jax.random.key(0))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) * 0.2, shapes)
    source = {
        path: LazyArray(value.shape, lambda value=value: value)
        for path, value in paths.leaves(params).items()
    }
    monkeypatch.setattr(init_sources, "opened", lambda _: init_sources.Opened(source))

    backbone = VisionLanguageModel(*(getattr(model, part) for part in PARTS))
    vocabulary = model.text_encoder.vocab_size
    task = pretraining.build(
        backbone=backbone,
        objectives={"mlm": {"tied": tied, "epsilon": epsilon}, "itm": 1.0},
        vocab_size=vocabulary, pad_id=0, cls_id=None, sep_id=None, mask_id=MASK,
    )  # fmt: skip
    batch["mask"] = jnp.ones(len(batch["tokens"]), bool)
    target = jax.eval_shape(
        lambda key: task.model.init(key, batch, train=False)["params"], jax.random.key(0)
    )
    start = init_from.start({"from": "somewhere"}, paths.leaves(target))
    new = {path.split("/")[0] for path, how in start.how.items() if how == "new"}
    assert new == {"objectives_itm"}
    assert not any(path.startswith("word_head/") for path in start.unused)

    tokens, text_mask = batch["tokens"], batch["text_mask"]
    hidden, _ = mask_words(
        jax.random.key(0), tokens, text_mask, vocab_size=vocabulary, mask_id=MASK,
        special_ids=(0, MASK), continuation=None, rate=0.15,
    )  # fmt: skip
    assert bool((hidden != tokens).any())
    expected = jax.jit(model.apply)({"params": params}, {**batch, "tokens": hidden})[output]
    started = dict(start.values)
    itm = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), target["objectives_itm"])
    tree = paths.nested({path: value.read() for path, value in started.items()})
    outputs = jax.jit(lambda p, b: task.model.apply({"params": p}, b, train=False))(
        {**tree, "objectives_itm": itm}, batch
    )
    used = np.asarray(text_mask)
    found = np.asarray(outputs["mlm"]["logits"])[used]
    assert np.abs(found).max() > 0.1
    np.testing.assert_allclose(found, np.asarray(expected)[used], atol=1e-5)


def test_the_head_comes_with_the_text_encoder():
    """BERT's own, where the run takes its text encoder from it; another width is left out."""
    source = cases.load_golden("bert/words")[0]
    published = init_sources.parameters(str(source))
    shapes = {
        path.replace("word_head/", "objectives_mlm/words/"): jax.ShapeDtypeStruct(
            value.shape, np.float32
        )
        for path, value in published.items()
    }
    start = init_from.start({"text_encoder": {"from": str(source)}}, shapes)
    assert set(start.how.values()) == {"loaded"} and start.unused == ()
    for name in ("dense/kernel", "norm/scale", "bias"):
        value = start.values[f"objectives_mlm/words/{name}"]
        assert np.array_equal(value.read(), published[f"word_head/{name}"].read())
    shapes["objectives_mlm/words/dense/kernel"] = jax.ShapeDtypeStruct((24, 16), np.float32)
    start = init_from.start({"text_encoder": {"from": str(source)}}, shapes)
    assert start.how["objectives_mlm/words/dense/kernel"] == "new"
