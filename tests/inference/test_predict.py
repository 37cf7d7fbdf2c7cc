import numpy as np
import pytest
from PIL import Image

import mmflax
from mmflax.errors import MmflaxError
from mmflax.inference import attention_figure

QUESTIONS = ["is there a red circle?", "how many squares are there?", "what color is the triangle?"]


@pytest.fixture(scope="module")
def run(trained):
    return mmflax.load(str(trained[0]), batch_size=2)


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)


def test_one_or_many_and_every_kind_of_image_agree(run, image, tmp_path):
    path = tmp_path / "x.png"
    Image.fromarray(image).save(path)
    whole = run.predict([image, Image.fromarray(image), str(path)], QUESTIONS)
    assert [p.text for p in whole] == QUESTIONS
    assert run.predict(image, QUESTIONS) == whole
    for question, prediction in zip(QUESTIONS, whole, strict=True):
        single = run.predict(path.read_bytes(), question)
        assert single.answer == prediction.answer
        assert single.probability == pytest.approx(prediction.probability, rel=1e-5)
    many = run.predict([image] * 3, QUESTIONS[0])
    assert len({p.probability for p in many}) == 1


def test_one_compile_for_any_number_of_questions(run, image):
    for count in (1, 2, 3, 5):
        run.predict(image, ["is there a circle?"] * count)
    assert run._forward._cache_size() == 1


def test_probabilities_are_ordered_and_at_most_one(run, image):
    top = run.predict(image, QUESTIONS[0], top=100).top
    shares = [share for _, share in top]
    assert len(top) == len(run.processor.answers)
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("images", "texts", "message"),
    [([], QUESTIONS, "nothing to predict"), ([0, 0], QUESTIONS, "2 images and 3 questions")],
)
def test_lists_must_fit(run, images, texts, message):
    with pytest.raises(MmflaxError, match=message):
        run.predict(images, texts)


def test_attention_is_what_the_answer_used(run, image):
    weights = run.attention(image, QUESTIONS[0])
    (layer,) = attention_figure.text_to_image(weights)
    tokens = run.model.backbone.image_encoder.num_tokens()
    assert layer.shape == (2, run.processor.max_length, tokens)
    real = len("is there a red circle ?".split()) + 2
    np.testing.assert_allclose(layer[:, :real].sum(-1), 1.0, rtol=1e-5)
    assert attention_figure.attention_map(layer, (2, 2), prefix=1).sum() == pytest.approx(1.0)


def test_an_attention_map_averages_heads_and_drops_the_prefix():
    layer = np.zeros((2, 1, 5), np.float32)
    layer[0, 0] = [0.5, 0.5, 0, 0, 0]
    layer[1, 0] = [0.5, 0, 0, 0, 0.5]
    np.testing.assert_allclose(
        attention_figure.attention_map(layer, (2, 2), prefix=1), [[0.5, 0], [0, 0.5]]
    )


@pytest.mark.parametrize("form", ["meter", "lxmert", "one way"])
@pytest.mark.parametrize("scan", [False, True])
def test_cross_attention_is_found_in_every_form(form, scan):
    import jax
    import jax.numpy as jnp

    from mmflax.models.fusion import co_attention, cross_attention

    sizes = dict(width=8, depth=2, num_heads=2, scan_layers=scan)
    if form == "one way":
        fusion = cross_attention.build(**sizes)
    else:
        fusion = co_attention.build(form=form, **sizes)
    image, text = jnp.ones((1, 5, 8)), jnp.ones((1, 3, 8))
    key = jax.random.key(0)
    params = fusion.init(key, image, text, train=False)["params"]
    _, variables = fusion.apply(
        {"params": params}, image, text, train=False, mutable=["intermediates"]
    )
    weights = {
        "fusion/" + jax.tree_util.keystr(p, simple=True, separator="/").removesuffix("/0"): leaf
        for p, leaf in jax.tree_util.tree_leaves_with_path(variables["intermediates"])
    }
    layers = attention_figure.text_to_image(weights)
    assert [layer.shape for layer in layers] == [(2, 3, 5)] * 2
