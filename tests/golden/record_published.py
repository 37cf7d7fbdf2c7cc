"""Records `published/CASE/`: a published processor's files, and what transformers makes with them.

    python tests/golden/record_published.py [CASE ...]

Needs the extra `parity` (transformers) and sentencepiece; the tests that read what it writes do
not. `spiece.model` and `spiece_albert.model`, which `--spiece` trains anew, are tiny vocabularies
of this project's own documentation.
"""

import json
import pathlib
import random
import shutil
import sys

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.data import published_cases as cases  # noqa: E402
from tests.data import published_texts as odd  # noqa: E402
from tests.data.published_pictures import CONFIGS, CONVERTS, MODES, random_image  # noqa: E402

LIMIT = 200_000  # bytes of one recorded case
# What is in a directory beyond what our loader reads.
UNREAD = ("chat_template.jinja", "vocab.txt")


def record(name: str, case: cases.Case) -> None:
    import transformers

    root = odd.GOLDEN / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    arrays: dict[str, np.ndarray] = {}
    if case.config:
        odd.write_json(root / "config.json", case.config)
    if case.words:
        class_name, write = odd.LEGACY[case.words]
        write(root)
        tokenizer = getattr(transformers, class_name).from_pretrained(root)
        if case.whole:
            for file in root.iterdir():
                if file.name != "config.json":
                    file.unlink()
            tokenizer.save_pretrained(root)
            for file in UNREAD:
                (root / file).unlink(missing_ok=True)
        texts = odd.random_texts(11, 24)
        pairs = [texts[(index * 5 + 1) % len(texts)] for index in range(len(texts))]
        options = dict(padding="max_length", truncation=True, max_length=cases.LENGTH)
        options |= dict(return_token_type_ids=True, return_attention_mask=True, return_tensors="np")
        for kind, output in (
            ("", tokenizer(texts, **options)),
            ("pair:", tokenizer(texts, pairs, **options)),
        ):
            arrays |= {f"{kind}{key}": value.astype(np.int32) for key, value in output.items()}
        odd.write_json(root / "texts.json", {"texts": texts, "pairs": pairs})
        (root / "spiece.model").unlink(missing_ok=True)
    if case.images:
        config = CONFIGS[case.images]
        odd.write_json(root / "preprocessor_config.json", config)
        kind = config.get("image_processor_type") or config["feature_extractor_type"]
        kind = kind.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        processor = getattr(transformers, f"{kind}Pil")(**config)
        rng = random.Random(7)
        modes = MODES[:5] if case.images in CONVERTS else ("RGB",) * 3
        images = [random_image(rng, mode, (30, 60)) for mode in modes]
        for index, image in enumerate(images):
            # TIFF keeps every mode; the images are read back as opened images, not as files.
            image.save(root / f"image{index}.tiff", compression="tiff_adobe_deflate")
        opened = [Image.open(root / f"image{index}.tiff") for index in range(len(images))]
        output = processor(opened, return_tensors="np")
        arrays["pixel_values"] = np.moveaxis(output["pixel_values"], 1, -1)
        if "pixel_mask" in output:
            arrays["pixel_mask"] = output["pixel_mask"].astype(bool)
    np.savez_compressed(root / "arrays.npz", **arrays)
    size = sum(file.stat().st_size for file in root.iterdir())
    assert size < LIMIT, f"{name} takes {size} bytes; make it smaller"
    print(f"{name}: {size} bytes, {', '.join(sorted(arrays))}")


def train() -> None:
    """The two SentencePiece vocabularies; ALBERT's has symbols of its own."""
    import sentencepiece

    docs = [
        line
        for path in sorted((ROOT / "docs").glob("*.md"))
        for line in path.read_text().split("\n")
    ]
    lines = odd.CORPUS * 2 + [line.strip() for line in docs if line.strip()]
    common = dict(model_type="unigram", pad_id=0, bos_id=-1, num_threads=1, minloglevel=2)
    kinds = {
        "spiece": dict(
            vocab_size=500, character_coverage=0.999, eos_id=1, unk_id=2,
            control_symbols="[CLS],[SEP],[MASK]",
        ),
        "spiece_albert": dict(
            vocab_size=300, character_coverage=0.99, eos_id=-1, unk_id=1,
            control_symbols="[CLS],[SEP]", user_defined_symbols="(,),[MASK],-",
            normalization_rule_name="identity",
        ),
    }  # fmt: skip
    for name, fields in kinds.items():
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_prefix=str(odd.GOLDEN / name), **common, **fields
        )
        (odd.GOLDEN / f"{name}.vocab").unlink()


def main(wanted: list[str]) -> None:
    if "--spiece" in wanted:
        train()
        wanted = [name for name in wanted if name != "--spiece"]
    for name, case in cases.CASES.items():
        if not wanted or name in wanted:
            record(name, case)
    index = json.dumps(sorted(cases.CASES), indent=1)
    (odd.GOLDEN / "index.json").write_text(index + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
