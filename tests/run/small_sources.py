"""Small public checkpoints that can read: the recorded ones, with words and preprocessing."""

import json
import pathlib
import shutil

from mmflax.pretrained.inspect import inspect
from tests.pretrained import cases

# family -> its recorded checkpoint.
SMALL = {
    "meter": "meter-vqa", "vilt": "vilt-plain", "bridgetower": "bridgetower-plain",
    "lxmert": "lxmert-plain", "uniter": "uniter-answers", "vilbert": "vilbert-pretraining",
    "visual_bert": "visual_bert-pretraining", "clip": "clip-pair", "siglip": "siglip-pair",
    "align": "align-pair", "blip": "blip-pair", "vit": "vit-plain", "deit": "deit-plain",
    "swin": "swin-plain", "resnet": "resnet-plain", "vgg": "vgg-plain", "bert": "bert-plain",
    "roberta": "roberta-plain",
}  # fmt: skip
_LETTERS = "aeiocdlnrstgubfhjkmpqvwxyz0123456789"
# Those whose positions count from the padding's id, 1.
_ROBERTA = ("roberta", "bridgetower", "meter")


def small(family: str, root: pathlib.Path, name: str | None = None, words: bool = True) -> str:
    """The folder of the family's small checkpoint, with as many words as its table has rows."""
    target = root / (name or SMALL[family])
    if target.exists():
        return str(target)
    shutil.copytree(cases.GOLDEN / (name or SMALL[family]), target)
    fields = inspect(target, family=family).fields
    words_of = fields.get("text_encoder") or fields.get("decoder")
    if words and words_of:
        _write_words(family, target, words_of)
    size = fields.get("image_encoder", {}).get("image_size", 32)
    if family not in ("lxmert", "uniter", "vilbert", "visual_bert", "bert", "roberta"):
        pixels = {
            "image_processor_type": "ViTImageProcessor", "size": {"height": size, "width": size},
            "do_resize": True, "resample": 3, "do_normalize": True, "do_rescale": True,
            "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28],
        }  # fmt: skip
        (target / "preprocessor_config.json").write_text(json.dumps(pixels))
    return str(target)


def _write_words(family: str, target: pathlib.Path, text: dict) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    if family in _ROBERTA:
        special = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    pieces = [x for letter in _LETTERS for x in (letter, f"##{letter}")]
    count = text["vocab_size"] - len(special)
    more = [f"[unused{i}]" for i in range(max(0, count - len(pieces)))]
    words = [*special, *pieces[:count], *more]
    (target / "vocab.txt").write_text("\n".join(words))
    length = text["max_length"] - text.get("position_offset", 0)
    (target / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "model_max_length": length})
    )
