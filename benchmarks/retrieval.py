"""Time re-ranked retrieval against brute force, and what re-ranking only the nearest loses.

Speed: a fused model with random weights ranks images x texts both ways. Ours encodes each once and
fuses the nearest 64 of every query; brute force sends every pair through the whole model from
pixels and words (timed on a sample of pairs, then multiplied), or through the fusion alone from
kept encoder outputs (the same). Loss: with a trained run, recall at 1 of both on a full grid.

    python benchmarks/retrieval.py                            # 1,000 images x 5,000 texts
    python benchmarks/retrieval.py --fusion cross_attention --bert-depth 6 --fusion-depth 6
    python benchmarks/retrieval.py --workdir runs/retrieval   # only what is lost
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import mmflax
from mmflax import registry
from mmflax.data.dataset import Subset, in_memory
from mmflax.data.processor import Processor
from mmflax.evaluation.retrieval import evaluate_corpora, images_of
from mmflax.inference.search import Retriever
from mmflax.models.encoders import bert, vit
from mmflax.models.vision_language import VisionLanguageModel
from mmflax.run.build import Experiment
from mmflax.run.workdir import read_config
from mmflax.tasks import retrieval

WORDS = [f"word{i}" for i in range(200)]


def main() -> None:
    arguments = parse()
    report = lost(arguments) if arguments.workdir else speed(arguments)
    print(json.dumps(report, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--texts", type=int, default=5000, help="a multiple of --images")
    parser.add_argument("--rerank", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--width", type=int, default=48)
    parser.add_argument("--vit-depth", type=int, default=12)
    parser.add_argument("--bert-depth", type=int, default=4)
    parser.add_argument("--fusion", default="co_attention")
    parser.add_argument("--fusion-depth", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64, help="pairs: 4 x this")
    parser.add_argument(
        "--turns", type=int, default=5, help="batches of pairs sampled, before and after"
    )
    parser.add_argument("--cache-dtype", default=None)
    parser.add_argument("--placement", default="host", choices=("host", "device"))
    parser.add_argument("--workdir", help="of a trained retrieval run: measure what is lost")
    parser.add_argument("--split", default="test")
    parser.add_argument("--grid", type=int, default=250, help="texts of the full grid")
    return parser.parse_args()


def speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both stages, and of brute force by a sample."""
    rng = np.random.default_rng(0)
    side, count, total = arguments.image_size, arguments.images, arguments.texts
    pictures = rng.integers(0, 255, (count, side, side, 3), dtype=np.uint8)
    sentences = [" ".join(rng.choice(WORDS, 10)) for _ in range(total)]
    data = in_memory(
        {"train": [{"image": pictures[0], "question": sentence} for sentence in sentences[:500]]}
    )
    processor = Processor.learn(data, image_size=side, vocab_size=600, max_length=16)
    task, params = model(processor, arguments)
    retriever = Retriever(
        task.search,
        params,
        processor,
        batch_size=arguments.batch_size,
        cache_dtype=arguments.cache_dtype,
        placement=arguments.placement,
    )
    # Once before the clock, so that compiling is not part of either side.
    few = retriever.images(pictures[:64]), retriever.texts(sentences[:64])
    size = 4 * arguments.batch_size
    index = np.indices((64, 64)).reshape(2, -1)[:, :size]
    kinds = {
        "whole": pixels_to_score(task, params, processor, pictures, sentences, size),
        "fusion": lambda: retriever.match(*few, *index),
    }
    samples = sample(kinds, arguments.turns)

    began = time.perf_counter()
    images, texts = retriever.images(pictures), retriever.texts(sentences)
    encoded = time.perf_counter()
    owner = np.arange(total) % count
    evaluate_corpora(retriever, images, texts, owner, rerank=arguments.rerank)
    ended = time.perf_counter()
    ours = ended - began
    # Brute force is sampled before and after, since the machine's other work changes.
    after = sample(kinds, arguments.turns)
    whole, fused = (float(np.median(samples[name] + after[name])) / size for name in kinds)
    pairs = count * total
    return {
        "device": jax.devices()[0].device_kind,
        "fusion": f"{arguments.fusion}, {arguments.fusion_depth} layers",
        "images": count,
        "texts": total,
        "rerank": arguments.rerank,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "seconds": {
            "encoding": round(encoded - began, 2),
            "ranking_both_ways": round(ended - encoded, 2),
            "ours": round(ours, 1),
            "brute_force_from_pixels": round(whole * pairs, 1),
            "brute_force_from_kept_outputs": round(fused * pairs, 1),
        },
        "milliseconds_a_pair": {"whole": round(1e3 * whole, 4), "fusion": round(1e3 * fused, 4)},
        "ours_to_brute_force_from_pixels": f"1/{whole * pairs / ours:.1f}",
        "ours_to_brute_force_from_kept_outputs": f"1/{fused * pairs / ours:.1f}",
        "at_5k_images_25k_texts": arithmetic(whole, fused, (encoded - began) / (count + total)),
    }


def model(processor: Processor, arguments: argparse.Namespace) -> tuple[Any, Any]:
    layer = dict(width=arguments.width, num_heads=3)
    backbone = VisionLanguageModel(
        vit.build(
            image_size=arguments.image_size, patch_size=16, depth=arguments.vit_depth, **layer
        ),
        bert.build(vocab_size=processor.tokenizer.vocab_size, depth=arguments.bert_depth, **layer),
        registry.build(
            "mmflax.models.fusion",
            "--fusion",
            {"name": arguments.fusion, "depth": arguments.fusion_depth, **layer},
        ),
    )
    task = retrieval.build(backbone=backbone, fused=True)
    example = jax.tree.map(jnp.asarray, processor.zeros(1))
    init = jax.jit(lambda key: task.model.init(key, example, train=False)["params"])
    return task, init(jax.random.key(0))


def pixels_to_score(
    task: Any, params: Any, processor: Processor, pictures: Any, sentences: Any, size: int
) -> Callable[[], Any]:
    """A batch of pairs through the whole model; decoding and tokenizing are not counted."""
    take = np.arange(size)
    batch = processor.batch(
        [
            {"image": pictures[i % len(pictures)], "question": sentences[i % len(sentences)]}
            for i in take
        ]
    )
    batch = {name: batch[name] for name in ("image", "tokens", "text_mask")}

    @jax.jit
    def run(params: Any, batch: Any) -> Any:
        image, text = (
            task.search.encode_image(params, batch),
            task.search.encode_text(params, batch),
        )
        return task.search.match(params, image, text)

    return lambda: jax.block_until_ready(run(params, batch))


def sample(kinds: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of a batch of pairs, the kinds taking turns, after one turn to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(turns + 1):
        for name, run in kinds.items():
            began = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def arithmetic(whole: float, fused: float, encode: float) -> dict[str, Any]:
    """Karpathy's COCO test split, by the seconds measured here."""
    images, texts, rerank = 5000, 25000, 64
    pairs, judged = images * texts, rerank * (images + texts)
    ours = encode * (images + texts) + fused * judged
    return {
        "pairs": pairs,
        "pairs_judged_at_most": judged,
        "hours_ours": round(ours / 3600, 2),
        "hours_brute_force_from_pixels": round(whole * pairs / 3600, 1),
        "hours_brute_force_from_kept_outputs": round(fused * pairs / 3600, 1),
        "ratio": f"1/{whole * pairs / ours:.0f}",
    }


def lost(arguments: argparse.Namespace) -> dict[str, Any]:
    """Recall of the embeddings, of re-ranking the nearest, and of brute force, on a grid."""
    run = mmflax.load(arguments.workdir)
    data = Experiment(read_config(pathlib.Path(arguments.workdir))).dataset()
    source = data.source(arguments.split)
    grid = Subset(source, range(min(arguments.grid, len(source))))
    owner, first = images_of(grid)
    retriever = Retriever(
        run.task.search, run.params, run.processor, batch_size=arguments.batch_size
    )
    images = retriever.images(grid[index]["image"] for index in first)
    texts = retriever.texts(grid[index]["question"] for index in range(len(grid)))
    report: dict[str, Any] = {"images": len(images), "texts": len(texts)}
    for rerank in (0, 4, 16, arguments.rerank, len(texts)):
        began = time.perf_counter()
        found = evaluate_corpora(retriever, images, texts, owner, rerank=rerank)
        name = "brute_force" if rerank == len(texts) else f"rerank_{rerank}"
        report[name] = {
            key: round(value, 4) for key, value in found.items() if not key.startswith("first")
        } | {"seconds": round(time.perf_counter() - began, 1)}
    for key in ("i2t/recall@1", "t2i/recall@1"):
        ours = report[f"rerank_{arguments.rerank}"][key]
        report[f"lost_{key}"] = round(report["brute_force"][key] - ours, 4)
    return report


if __name__ == "__main__":
    main()
