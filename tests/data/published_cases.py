"""Which published processors are recorded in tests/golden/published."""

from typing import Any, NamedTuple

LENGTH = 24  # tokens of the recorded texts


class Case(NamedTuple):
    """Names of a tokenizer (`published_texts.LEGACY`) and of an image config.

    `whole`: the tokenizer as transformers 5 saves it, not as its older files.
    """

    words: str | None = None
    images: str | None = None
    config: dict[str, Any] | None = None
    whole: bool = False


CASES = {
    "bert": Case("bert", None, {"model_type": "bert", "type_vocab_size": 2}, whole=True),
    "bert-cased": Case("bert-cased", None, {"model_type": "visual_bert", "type_vocab_size": 2}),
    "roberta": Case("roberta", None, {"model_type": "roberta", "type_vocab_size": 1}),
    "albert": Case("albert", None, {"model_type": "albert", "type_vocab_size": 2}),
    "t5": Case("t5", None, {"model_type": "t5"}),
    "clip": Case("clip", "clip", {"model_type": "clip"}),
    "clip-whole": Case("clip", "clip-small", {"model_type": "clip"}, whole=True),
    "siglip": Case("siglip", "siglip", {"model_type": "siglip"}),
    "align": Case("bert", "align", {"model_type": "align", "text_config": {"type_vocab_size": 2}}),
    "bridgetower": Case("roberta", "bridgetower", {"model_type": "bridgetower"}, whole=True),
    "vilt": Case("bert", "vilt", {"model_type": "vilt", "type_vocab_size": 2}),
    "blip": Case("blip", "blip", {"model_type": "blip"}),
    "vit": Case(None, "vit", {"model_type": "vit"}),
    "deit": Case(None, "deit", {"model_type": "deit"}),
    "swin": Case(None, "swin", {"model_type": "swin"}),
    "resnet": Case(None, "resnet", {"model_type": "resnet"}),
    "efficientnet": Case(None, "efficientnet", {"model_type": "efficientnet"}),
}
