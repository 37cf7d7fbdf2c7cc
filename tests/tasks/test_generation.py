"""Writing texts: no leak from any memory, loss and metrics by hand, searches against the model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.errors import MmflaxError
from mmflax.models.encoders import bert, vit
from mmflax.models.fusion import co_attention
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import generation
from mmflax.tasks.generation import generate, score_texts

PAD, CLS, SEP, MASK = 0, 2, 3, 4
V, LENGTH = 30, 7
MEMORIES = [("image",), ("text",), ("fused",), ("image", "text", "fused")]
# Scores of words from a kernel: a random model whose tables are tied repeats itself.
BESIDE = dict(memory=MEMORIES[-1], table="text_encoder", decoder=dict(tie="none"))


def build(**fields):
    sizes = dict(width=16, num_heads=2, depth=1, mlp_dim=32)
    backbone = VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, **sizes),
        bert.build(vocab_size=V, max_length=8, **sizes),
        co_attention.build(**sizes),
    )
    given = dict(vocab_size=V, pad_id=PAD, cls_id=CLS, sep_id=SEP, mask_id=MASK)
    decoder = sizes | fields.get("decoder", {})
    fields = dict(target_length=LENGTH) | fields | dict(decoder=decoder)
    return generation.build(backbone=backbone, **given, **fields)


def batch(rows=4, seed=0):
    """Questions of tokens 5..14, targets of different tokens 15..29 and of 2 to 5 words."""
    rng = np.random.default_rng(seed)
    target = np.full((rows, LENGTH), PAD)
    for row in range(rows):
        words = rng.permutation(np.arange(15, 30))[: 2 + row % 4]
        target[row, : len(words) + 2] = [CLS, *words, SEP]
    return {
        "image": jnp.asarray(rng.normal(size=(rows, 8, 8, 3)), jnp.float32),
        "tokens": jnp.asarray(rng.integers(5, 15, (rows, 5)), jnp.int32),
        "text_mask": jnp.ones((rows, 5), bool),
        "target": jnp.asarray(target, jnp.int32),
        "target_mask": jnp.asarray(target != PAD),
    }


def random_params(task, given, seed=0):
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), given, train=False))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.3 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes["params"])


@pytest.fixture(scope="module")
def beside():
    """A task with every memory and the encoder's table, its batch and random parameters."""
    task, given = build(**BESIDE), batch()
    return task, given, random_params(task, given)


@pytest.mark.parametrize("memory", MEMORIES)
def test_no_future_word_and_no_absent_modality_leaks(memory):
    """Exactly: d logits[:, i] / d embedding of target tokens after i is 0, those up to i are not;
    and where image or text is absent, whatever stands in its place changes nothing."""
    given = batch() | {"image_present": jnp.asarray([True, False, True, True])}
    given["text_mask"] = given["text_mask"].at[2].set(False)
    task = build(memory=memory, table="text_encoder", decoder=dict(tie="none"))
    params = random_params(task, given)
    path = ("backbone", "text_encoder", "word_embedding", "embedding")

    @jax.jit
    def run(table, given, i):
        def total(table):
            changed = jax.tree_util.tree_map_with_path(
                lambda p, leaf: table if tuple(k.key for k in p) == path else leaf, params
            )
            logits = task.model.apply({"params": changed}, given, train=False)["logits"]
            return (logits[3, i] * jnp.cos(jnp.arange(V, dtype=jnp.float32))).sum(), logits

        return jax.value_and_grad(total, has_aux=True)(table)

    table = params["backbone"]["text_encoder"]["word_embedding"]["embedding"]
    text = given["target"][3, :-1]
    for i in range(LENGTH - 1):
        size = jnp.abs(run(table, given, i)[1]).sum(axis=1)
        assert (size[text[: i + 1]] > 0).all() and (size[text[i + 1 :]] == 0).all()

    before, image, words = (
        run(table, {**given, **changed}, 0)[0][1]
        for changed in ({}, {"image": given["image"] + 1.0}, {"tokens": given["tokens"] + 1})
    )
    np.testing.assert_array_equal(image[1], before[1])
    np.testing.assert_array_equal(words[2], before[2])
    assert (image[0] != before[0]).any() == (memory != ("text",))
    assert (words[0] != before[0]).any() == (memory != ("image",))


def test_loss_and_metrics_by_hand():
    task, given = build(), batch(rows=3)
    given["target_mask"] = given["target_mask"].at[2].set(False)  # no target
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, LENGTH - 1, V)).astype(np.float32)
    wanted = np.asarray(given["target"])[:, 1:]
    logits[0, np.arange(LENGTH - 1), wanted[0]] += 20.0  # all right
    logits[1, 0, wanted[1, 0]] += 20.0
    logits[1, 1, 5] += 20.0  # surely wrong
    outputs = {"logits": jnp.asarray(logits)}
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nll = -np.take_along_axis(log_p, wanted[..., None], axis=-1)[..., 0]
    used = np.asarray(given["target_mask"])[:, 1:]
    count = used.sum(axis=1)
    assert count.tolist() == [3, 4, 0]
    expected = (nll * used).sum(axis=1) / np.maximum(count, 1)
    np.testing.assert_allclose(task.loss(outputs, given), expected, rtol=1e-5, atol=1e-6)
    smooth = build(label_smoothing=0.2).loss(outputs, given)
    parts = 0.8 * nll - 0.2 * log_p.mean(axis=-1)
    np.testing.assert_allclose(smooth, (parts * used).sum(axis=1) / np.maximum(count, 1), rtol=1e-5)
    metrics = task.metrics(outputs, given)
    assert set(metrics) == {"token_accuracy", "exact", "nll"}
    right = ((logits.argmax(-1) == wanted) & used).sum(axis=1)
    assert right[0] == 3 and 1 <= right[1] < 4
    for name, total, counted in (
        ("token_accuracy", right, count),
        ("exact", [1, 0, 0], [1, 1, 0]),
        ("nll", (nll * used).sum(axis=1), count),
    ):
        np.testing.assert_allclose(metrics[name][0], total, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(metrics[name][1], counted)


@pytest.mark.slow
def test_learns_a_batch_and_writes_it():
    """Trained on four pictures with their texts, the task writes those texts."""
    task, given = build(table="text_encoder"), batch()
    params = jax.jit(lambda key: task.model.init(key, given, train=False))(jax.random.key(0))
    speed = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def step(params, speed):
        def mean_loss(params):
            return task.loss(task.model.apply(params, given, train=True), given).mean()

        loss, grads = jax.value_and_grad(mean_loss)(params)
        speed = jax.tree.map(lambda s, g: 0.9 * s + g, speed, grads)
        return jax.tree.map(lambda p, s: p - 0.02 * s, params, speed), speed, loss

    for _ in range(150):
        params, speed, loss = step(params, speed)
    assert loss < 0.1
    found = task.predict(params["params"], given)
    np.testing.assert_array_equal(found["tokens"], given["target"])


@pytest.fixture(scope="module")
def teacher_forced(beside):
    """`tokens -> (log-probabilities, their sums over the texts)`, from the whole-text pass."""
    task, given, params = beside

    @jax.jit
    def run(tokens):
        seen = {**given, "target": tokens, "target_mask": tokens != PAD}
        logits = task.model.apply({"params": params}, seen, train=False)["logits"]
        log_p = jax.nn.log_softmax(logits)
        each = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
        return log_p, jnp.where(tokens[:, 1:] != PAD, each, 0.0).sum(axis=1)

    return run


def test_greedy_agrees_with_the_uncached_model(beside, teacher_forced):
    task, given, params = beside
    found = task.predict(params, given)
    tokens = found["tokens"]
    log_p, scores = teacher_forced(tokens)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-5)
    assert len({tuple(text) for text in tokens.tolist()}) > 1  # they depend on what is read
    for row in range(4):
        end = tokens[row].tolist().index(SEP)
        allowed = log_p[row, : min(end, LENGTH - 2)].at[:, jnp.asarray([PAD, CLS, MASK])].set(-99.0)
        assert allowed.argmax(axis=-1).tolist() == tokens[row, 1 : len(allowed) + 1].tolist()


def test_beam_scores_are_those_of_the_uncached_model(beside, teacher_forced):
    task, given, params = beside
    found = generate(task.model, params, given, method="beam", beams=4, length_penalty=0.8)
    _, scores = teacher_forced(found["tokens"])
    lengths = (found["tokens"] != PAD).sum(axis=1) - 1
    np.testing.assert_allclose(found["scores"], scores / ((5 + lengths) / 6) ** 0.8, rtol=1e-5)
    plain = generate(task.model, params, given, method="beam", beams=4, length_penalty=0.0)
    greedy = task.predict(params, given)
    assert (plain["scores"] >= greedy["scores"] - 1e-5).all()
    assert (plain["scores"] > greedy["scores"] + 1e-3).any()


@pytest.mark.parametrize("method", ["greedy", "beam", "sample"])
def test_rows_written_together_come_out_as_alone(beside, method):
    task, given, params = beside
    key = jax.random.key(5) if method == "sample" else None

    def write(given):
        return generate(task.model, params, given, method=method, key=key)

    together = write(given)
    assert len({tuple(text) for text in together["tokens"].tolist()}) > 1
    for row in range(4):
        # Beside copies of itself, in its own place: that decides what it draws.
        copies = {name: jnp.repeat(value[row : row + 1], 4, 0) for name, value in given.items()}
        alone = write(copies)
        np.testing.assert_array_equal(alone["tokens"][row], together["tokens"][row])
        np.testing.assert_allclose(alone["scores"][row], together["scores"][row], rtol=1e-5)
    if method != "sample":
        single = write({name: value[2:3] for name, value in given.items()})
        np.testing.assert_array_equal(single["tokens"][0], together["tokens"][2])


def test_predict_uses_the_task_s_options(beside):
    task, given, params = beside
    options = dict(method="beam", beams=2, length_penalty=1.5, min_length=3)
    other = build(**BESIDE, decode=options)
    expected = generate(task.model, params, given, **options)
    found = other.predict(params, given)
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    assert (np.asarray(found["tokens"])[:, 1:4] != SEP).all()
    sampler = build(**BESIDE, decode=dict(method="sample", top_k=3, seed=8))
    sampled = sampler.predict(params, given)
    again = generate(task.model, params, given, method="sample", top_k=3, key=jax.random.key(8))
    np.testing.assert_array_equal(sampled["tokens"], again["tokens"])
    short = generate(task.model, params, given, max_length=4)
    assert short["tokens"].shape == (4, 4) and (short["tokens"][:, 1:] == SEP).any(axis=1).all()


@pytest.mark.slow
def test_a_tied_model_stops_repeating_itself_when_asked():
    given = batch()
    task, kept = build(), build(decode=dict(no_repeat_ngram_size=1, min_length=4))
    params = random_params(task, given)

    def repeats(task):
        words = np.asarray(task.predict(params, given)["tokens"])[:, 1:5].tolist()
        return any(len(row) > len(set(row)) for row in words)

    assert repeats(build(decode=dict(min_length=4))) and not repeats(kept)
    with pytest.raises(MmflaxError, match="repetition_penalty is 0"):
        build(decode=dict(repetition_penalty=0.0))
    with pytest.raises(MmflaxError, match="temperature is -1"):
        build(decode=dict(method="sample", temperature=-1.0))


def test_a_search_needs_no_target(beside):
    task, given, params = beside
    asked = {name: value for name, value in given.items() if not name.startswith("target")}
    np.testing.assert_array_equal(
        task.predict(params, asked)["tokens"], task.predict(params, given)["tokens"]
    )
    with pytest.raises(MmflaxError, match="needs 'target'.*processor.target_length"):
        task.model.apply({"params": params}, asked, train=False)


def test_caption_words_join_the_loss():
    task, plain, given = build(caption_words=0.5), build(), batch()
    given |= {"caption": given["target"], "caption_mask": given["target_mask"]}
    params = random_params(task, given)
    outputs = jax.jit(lambda p: task.model.apply({"params": p}, given, train=False))(params)
    assert outputs["words"].shape == (4, 5, V)
    assert (task.loss(outputs, given) > plain.loss(outputs, given)).all()
    with pytest.raises(MmflaxError, match="give --config.processor.caption_length=TOKENS"):
        task.loss(outputs, batch())


def test_scores_of_texts():
    records = [
        {"text": "a red circle", "references": ["A red circle.", "one circle"]},
        {"text": "a blue square on the left", "target": "a blue square at the left"},
        {"text": "two", "answer": "three"},
        {"text": "left out", "references": None},
    ]
    found = score_texts(records, ("exact_match", "bleu", "rouge_l", "cider_d"))
    names = {"exact_match", "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"}
    assert set(found) == names
    np.testing.assert_allclose(found["exact_match"], 1 / 3)
    np.testing.assert_allclose(found["bleu_1"], 8 / 10)
    assert 0 < found["cider_d"] < 10 and 0 < found["rouge_l"] < 1
    assert build().score(records[-1:]) == {}
    answers = [{"text": "Two dogs.", "answers": ["2 dogs"] * 2 + ["cat"] * 8, "answer": "cat"}]
    np.testing.assert_allclose(
        build(scores=("vqa_accuracy",)).score(answers)["vqa_accuracy"], 0.6, atol=0.01
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(target_length=0), "target_length is 0"),
        (dict(memory=()), "expected one or more of image, text, fused"),
        (dict(memory=("pixels",)), "expected one or more of image, text, fused"),
        (dict(table="image"), "task.table is 'image'"),
        (dict(scores=("spice",)), "task.scores names 'spice'.*Java.*known are exact_match"),
        (dict(scores=("meteor",)), "task.scores names 'meteor'.*WordNet.*known are exact_match"),
        (dict(scores=("bleuu",)), "task.scores names 'bleuu'; known are exact_match"),
        (dict(decoder=dict(widht=3)), "it needs width, depth and num_heads.*may hold activation"),
        (dict(decode=dict(method="best")), "'best'; expected one of greedy, beam, sample"),
        (dict(decode=dict(beams=2)), "'greedy' has no option 'beams'"),
        (dict(decode=dict(method="beam", seed=1)), "'beam' has no option 'seed'"),
    ],
)
def test_mistakes_in_a_config_are_one_sentence(fields, message):
    with pytest.raises(MmflaxError, match=message):
        build(**fields)


def test_keys_belong_to_sampling(beside):
    task, given, params = beside
    with pytest.raises(MmflaxError, match="give it key="):
        generate(task.model, params, given, method="sample")
    with pytest.raises(MmflaxError, match="leave key out"):
        generate(task.model, params, given, key=jax.random.key(0))
