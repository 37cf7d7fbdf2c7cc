"""Searching in two stages against doing it the slow way: every pair through the whole model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmflax.data.dataset import in_memory
from mmflax.data.processor import Processor
from mmflax.errors import MmflaxError
from mmflax.evaluation import ranking
from mmflax.evaluation.retrieval import evaluate_corpora, evaluate_retrieval, images_of
from mmflax.inference import search
from mmflax.metrics.retrieval import both_ways, ranks, retrieval
from mmflax.models.encoders import bert, vit
from mmflax.models.fusion import co_attention
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.tasks import retrieval as task_of

WORDS = "red green blue large small circle square triangle above below left right".split()


@pytest.fixture(scope="module")
def data():
    """7 images with 1 to 3 texts each, not in order of images."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(7):
        image = rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)
        for _ in range(1 + number % 3):
            text = " ".join(rng.choice(WORDS, rng.integers(2, 5)))
            examples.append({"image": image, "question": text, "image_id": f"i{number}"})
    examples = [examples[i] for i in rng.permutation(len(examples))]
    return in_memory({"train": examples})


@pytest.fixture(scope="module")
def processor(data):
    return Processor.learn(data, image_size=8, vocab_size=60, max_length=8)


def build(processor, **fields):
    sizes = dict(width=16, num_heads=2, depth=1, mlp_dim=32)
    backbone = VisionLanguageModel(
        vit.build(image_size=8, patch_size=4, **sizes),
        bert.build(vocab_size=processor.tokenizer.vocab_size, max_length=8, **sizes),
        co_attention.build(**sizes),
    )
    task = task_of.build(backbone=backbone, embed_dim=8, **fields)
    example = jax.tree.map(jnp.asarray, processor.zeros(1))
    shapes = jax.eval_shape(lambda: task.model.init(jax.random.key(0), example, train=False))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda s: jnp.asarray(0.6 * rng.normal(size=s.shape), s.dtype), shapes)
    return task, params["params"]


@pytest.fixture(scope="module")
def fused(processor):
    return build(processor, fused=True)


@pytest.fixture(scope="module")
def retriever(fused, processor):
    task, params = fused
    return search.Retriever(task.search, params, processor, batch_size=4, match_batch_size=8)


@pytest.fixture(scope="module")
def corpora(retriever, data):
    """(images, texts, owner): what `evaluate_retrieval` makes of the split."""
    source = data.source("train")
    owner, first = images_of(source)
    images = retriever.images(source[i]["image"] for i in first)
    return images, retriever.texts(source[i]["question"] for i in range(len(source))), owner


@pytest.fixture(scope="module")
def brute(fused, processor, data, corpora):
    """Match scores [images texts]: every pair from pixels and words through the whole model."""
    task, params = fused
    source = data.source("train")
    owner, first = images_of(source)

    @jax.jit
    def whole(batch):
        model = task.model
        image = model.apply({"params": params}, batch, train=False, method="encode_image")
        text = model.apply({"params": params}, batch, train=False, method="encode_text")
        logits = model.apply({"params": params}, image, text, train=False, method="match")
        return logits[:, 1] - logits[:, 0]

    rows = []
    for i in first:
        raws = [source[j] | {"image": source[i]["image"]} for j in range(len(source))]
        batch = processor.batch(raws)
        batch.pop("id")
        rows.append(np.asarray(whole(batch)))
    return np.stack(rows)


def test_owners_and_first_places_follow_the_image_ids(data):
    source = data.source("train")
    owner, first = images_of(source)
    ids = [source[i]["image_id"] for i in range(len(source))]
    assert len(first) == 7 == len(set(ids))
    assert [ids[first[o]] for o in owner] == ids


def test_cached_pairs_equal_the_uncached_forward(retriever, corpora, brute):
    images, texts, _ = corpora
    i, t = (index.reshape(-1) for index in np.indices(brute.shape))
    found = retriever.match(images, texts, i, t).reshape(brute.shape)
    np.testing.assert_allclose(found, brute, rtol=2e-5, atol=2e-6)
    order = np.random.default_rng(0).permutation(len(i))[:5]
    again = retriever.match(images, texts, i[order], t[order])
    np.testing.assert_allclose(again, brute[i[order], t[order]], rtol=2e-5, atol=2e-6)


def test_pairs_asked_twice_are_fused_once(retriever, corpora, monkeypatch):
    images, texts, _ = corpora
    calls = []
    real = retriever._match
    monkeypatch.setattr(retriever, "_match", lambda *args: calls.append(1) or real(*args))
    index = np.array([3, 1] * 8)
    scores = retriever.match(images, texts, index, index)
    assert len(calls) == 1
    assert len(set(scores[::2])) == 1 and len(set(scores[1::2])) == 1 and scores[0] != scores[1]


def test_reranking_everything_equals_brute_force(fused, processor, data, corpora, brute):
    task, params = fused
    *_, owner = corpora
    found = evaluate_retrieval(
        task.search, params, processor, data.source("train"), batch_size=5, rerank=1000
    )
    expected = retrieval(brute, list(range(7)), owner.tolist())
    assert expected.items() <= found.items()
    first = {name for name in found if name.startswith("first_stage/")}
    assert first == {f"first_stage/{n}" for n in ("i2t/recall@1", "t2i/recall@1", "rsum")}


@pytest.mark.parametrize("k", [1, 3])
def test_the_first_k_by_match_then_the_rest_by_embedding(retriever, corpora, brute, k):
    """Ranks against lists that are ordered in Python, one query at a time."""
    images, texts, owner = corpora
    products = images.rows["embedding"] @ texts.rows["embedding"].T
    found = evaluate_corpora(retriever, images, texts, owner, rerank=k)

    def expected(products, match, query_groups, item_groups):
        result = []
        for row, query in enumerate(query_groups):
            order = sorted(range(len(item_groups)), key=lambda j: -products[row, j])
            order = sorted(order[:k], key=lambda j: -match[row, j]) + order[k:]
            result.append(1 + min(order.index(j) for j in order if item_groups[j] == query))
        return np.array(result)

    own = np.arange(len(images))
    want = both_ways(
        expected(products, brute, own, owner), expected(products.T, brute.T, owner, own)
    )
    assert want.items() <= found.items()
    plain = both_ways(ranks(products, own, owner), ranks(products.T, owner, own))
    assert found["first_stage/rsum"] == plain["rsum"]
    assert ({name: found[name] for name in plain} != plain) == (k > 1)


def test_no_reranking_is_the_embeddings_order(fused, retriever, corpora, processor, data):
    images, texts, owner = corpora
    found = evaluate_corpora(retriever, images, texts, owner, rerank=0)
    products = images.rows["embedding"] @ texts.rows["embedding"].T
    assert found == retrieval(products, list(range(7)), owner.tolist())


def test_embedding_weight_adds_the_cosine(retriever, corpora, brute):
    images, texts, owner = corpora
    products = images.rows["embedding"] @ texts.rows["embedding"].T
    found = evaluate_corpora(retriever, images, texts, owner, rerank=99, embedding_weight=50.0)
    expected = retrieval(brute + 50.0 * products, list(range(7)), owner.tolist())
    assert expected.items() <= found.items()
    assert expected != retrieval(brute, list(range(7)), owner.tolist())


@pytest.mark.parametrize("size", [1, 3])
def test_batch_sizes_and_their_padding_change_nothing(size, fused, processor, data, corpora, brute):
    task, params = fused
    images, texts, _ = corpora
    other = search.Retriever(
        task.search, params, processor, batch_size=size, match_batch_size=size + 1
    )
    source = data.source("train")
    again = other.texts(source[i]["question"] for i in range(len(source)))
    for name, row in again.rows.items():
        np.testing.assert_allclose(row, texts.rows[name], rtol=2e-5, atol=2e-6)
    index = np.arange(7)
    found = other.match(images, again, index, index)
    np.testing.assert_allclose(found, brute[index, index], rtol=2e-5, atol=2e-6)


def test_compact_caches_and_device_caches_match_alike(fused, processor, data, corpora, brute):
    task, params = fused
    source = data.source("train")
    owner, first = images_of(source)
    for fields, rtol in (
        (dict(placement="device"), 2e-5),
        (dict(cache_dtype="float16"), 0.01),
    ):
        other = search.Retriever(task.search, params, processor, batch_size=4, **fields)
        images = other.images(source[i]["image"] for i in first)
        texts = other.texts(source[i]["question"] for i in range(len(source)))
        assert images.rows["tokens"].dtype == jnp.dtype(fields.get("cache_dtype", "float32"))
        assert images.rows["embedding"].dtype == np.float32
        assert images.rows["mask"].dtype == bool
        i, t = (index.reshape(-1) for index in np.indices(brute.shape))
        found = other.match(images, texts, i, t).reshape(brute.shape)
        np.testing.assert_allclose(found, brute, rtol=rtol, atol=rtol)


def test_parameters_on_a_mesh_find_the_same(fused, processor, data):
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    task, params = fused
    devices = np.array(jax.devices()).reshape(4, 2)
    mesh = Mesh(devices, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    placed = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    fields = dict(batch_size=8, rerank=3)
    source = data.source("train")
    expected = evaluate_retrieval(task.search, params, processor, source, **fields)
    found = evaluate_retrieval(task.search, placed, processor, source, **fields)
    assert found == expected


def test_find_images_and_texts(retriever, corpora, data, brute):
    images, texts, _ = corpora
    source = data.source("train")
    t = 2
    found = retriever.find_images(source[t]["question"], images, top=3, rerank=99)
    assert [f.index for f in found] == np.argsort(-brute[:, t])[:3].tolist()
    np.testing.assert_allclose([f.match for f in found], np.sort(brute[:, t])[::-1][:3], rtol=1e-4)
    _, first = images_of(source)
    pictures = [source[i]["image"] for i in first]
    assert [f.index for f in retriever.find_images(source[t]["question"], pictures, top=3)] == [
        f.index for f in found
    ]
    found = retriever.find_texts(pictures[4], texts, top=2, rerank=2)
    products = images.rows["embedding"][4] @ texts.rows["embedding"].T
    best = np.argsort(-products)[:2]
    assert {f.index for f in found} == set(best.tolist())
    assert found[0].match >= found[1].match
    assert found[0].similarity == pytest.approx(products[found[0].index], rel=1e-5)
    plain = retriever.find_texts(pictures[4], texts, top=2, rerank=0)
    assert [f.index for f in plain] == best.tolist() and plain[0].match is None


def test_a_dual_encoder_searches_by_embedding_alone(processor, data):
    task, params = build(processor)
    source = data.source("train")
    found = evaluate_retrieval(task.search, params, processor, source)
    assert "rsum" in found and "first_stage/rsum" not in found
    retriever = search.Retriever(task.search, params, processor)
    texts = retriever.texts(["a red circle", "a blue square"])
    assert set(texts.rows) == {"embedding"}
    (result,) = retriever.find_texts(source[0]["image"], texts, top=1)
    assert result.match is None
    with pytest.raises(MmflaxError, match="no fusion"):
        retriever.match(texts, texts, np.array([0]), np.array([0]))


def test_nearest_is_exact_over_several_blocks(monkeypatch):
    monkeypatch.setattr(ranking, "_BLOCK", 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(11, 5)).astype(np.float32)
    y = rng.normal(size=(30, 5)).astype(np.float32)
    for k in (1, 7, 30, 99):
        index, scores = ranking.nearest(x, y, k)
        expected = np.argsort(-(x @ y.T), axis=1)[:, :k]
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_allclose(scores, np.take_along_axis(x @ y.T, expected, 1), rtol=1e-6)
    groups = np.arange(11)
    owner = np.arange(30) % 11
    np.testing.assert_array_equal(
        ranking.reranked(x, y, groups, owner), ranks(x @ y.T, groups, owner)
    )


def test_a_match_that_tells_nothing_ranks_last_of_the_judged():
    """Constant and NaN scores must not pass for a good order."""
    x = np.eye(4, dtype=np.float32)
    own = np.arange(4)
    candidates, _ = ranking.nearest(x, x, 3)
    for useless in (np.zeros((4, 3)), np.full((4, 3), np.nan)):
        found = ranking.reranked(x, x, own, own, candidates, useless)
        assert (found >= 3).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.images([]), "list of images is empty"),
        (lambda r: r.texts([" "]), "is empty"),
        (lambda r: r.images([None]), "cannot be searched for"),
        (lambda r: r.find_images("red", [], top=1), "list of images is empty"),
        (lambda r: r.find_images("red", r.texts(["red"]), top=1), "texts; expected images"),
        (lambda r: r.find_texts(np.zeros((8, 8, 3), np.uint8), ["red"], top=0), "top is 0"),
        (lambda r: search.Retriever(None, {}, None), "does not rank"),
        (lambda r: search.Retriever(r, {}, None, batch_size=0), "batch_size is 0"),
        (lambda r: search.Retriever(r, {}, None, placement="disk"), "host or device"),
    ],
)
def test_bad_calls_are_one_sentence(call, message, retriever):
    with pytest.raises(MmflaxError, match=message):
        call(retriever)


@pytest.mark.parametrize("key", ["image", "question"])
def test_an_example_with_something_absent_is_left_out(key, fused, processor, data):
    task, params = fused
    examples = [data.source("train")[index] for index in range(6)]
    lone = {**examples[0], key: None, "image_id": "other"}
    rank = functools.partial(evaluate_retrieval, task.search, params, processor)
    assert rank([examples[0], lone, *examples[1:]], batch_size=4) == rank(examples, batch_size=4)
    with pytest.raises(MmflaxError, match="No example of the split has both"):
        rank([lone])


def test_unreadable_images_leave_with_their_texts(fused, processor, data):
    """The same metrics as without those examples."""
    task, params = fused
    source = data.source("train")
    bad = {"i1", "i4"}
    rows = [{**raw, "image": b""} if raw["image_id"] in bad else raw for raw in source]
    clean = [raw for raw in source if raw["image_id"] not in bad]
    named = []
    found, expected = (
        evaluate_retrieval(task.search, params, processor, rows, batch_size=3, **fields)
        for rows, fields in (
            (rows, dict(max_bad_fraction=0.3, on_bad=lambda *pair: named.append(pair))),
            (clean, {}),
        )
    )
    assert found == pytest.approx(expected, rel=1e-5)
    first = {raw["image_id"]: raw["id"] for raw in reversed(list(source))}
    assert {id for id, _ in named} == {first[name] for name in bad} and "empty" in named[0][1]
    with pytest.raises(MmflaxError, match="2 of the 7 examples .*max_bad_fraction = 0.2"):
        evaluate_retrieval(task.search, params, processor, rows, max_bad_fraction=0.2)
    with pytest.raises(MmflaxError, match="Example train:.* an empty file"):
        evaluate_retrieval(task.search, params, processor, rows)


def test_equal_texts_count_only_where_asked(fused, processor, data):
    """By ids alone nothing changes, whatever the texts are; where none are equal neither does."""
    task, params = fused
    source = data.source("train")
    rank = functools.partial(evaluate_retrieval, task.search, params, processor, rerank=3)
    different = [{**raw, "question": f"{raw['question']} {WORDS[i % 12]} {i}"}
                 for i, raw in enumerate(source)]  # fmt: skip
    assert rank(different, equal_texts=True) == rank(different)
    same = [{**raw, "question": "a red circle" if i % 2 else "a circle below"}
            for i, raw in enumerate(source)]  # fmt: skip
    by_ids, found = rank(same), rank(same, equal_texts=True)
    assert by_ids["t2i/recall@1"] < 1 and found["rsum"] > by_ids["rsum"]
    # Every image that has both texts finds one of them first, whichever that is.
    both = [raw | {"question": text} for raw in source for text in ("a circle", "below")]
    found = rank(both, equal_texts=True)
    assert found["i2t/recall@1"] == found["t2i/recall@1"] == 1.0
    assert rank(both)["t2i/recall@1"] < 0.5
