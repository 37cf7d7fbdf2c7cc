"""Records `decoded.json`: what transformers decodes of a text's ids, by the tokenizer's files.

    python tests/golden/record_decoded.py

Needs the extra `parity`; the test that reads what it writes does not.
"""

import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.data import published_texts as odd  # noqa: E402

TEXTS = (
    "what color is the man's shirt? a-b, it's (x) 3,000.", "don't", "I'll; we've, they're, I'm!",
    "is there any water ? yes , there is .", "[DEC] yes [SEP]", "the 'quoted' cat isn't n't here",
    "12:45", "",
)  # fmt: skip
BPE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
# What a tokenizer_config.json says.
CONFIGS = (
    {},
    {"clean_up_tokenization_spaces": True},
    {"clean_up_tokenization_spaces": False},
    {"clean_up_tokenization_spaces": True, BPE: True},
)
KINDS = ("blip", "roberta", "t5")


def write(root: pathlib.Path, kind: str, config: dict) -> None:
    """The legacy files of a kind with further keys in its config."""
    odd.LEGACY[kind][1](root)
    file = root / "tokenizer_config.json"
    odd.write_json(file, {**json.loads(file.read_text("utf-8")), **config})


def record() -> list[dict]:
    """A row for every kind and config: what each of TEXTS is decoded to."""
    import transformers

    rows = []
    for kind in KINDS:
        for config in CONFIGS:
            with tempfile.TemporaryDirectory() as folder:
                root = pathlib.Path(folder)
                write(root, kind, config)
                tokenizer = getattr(transformers, odd.LEGACY[kind][0]).from_pretrained(root)
                ids = [tokenizer(text)["input_ids"] for text in TEXTS]
                decoded = [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
                rows.append({"kind": kind, "config": config, "decoded": decoded})
    return rows


if __name__ == "__main__":
    path = pathlib.Path(__file__).parent / "decoded.json"
    path.write_text(json.dumps(record(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
