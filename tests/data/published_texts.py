"""Odd texts, and tiny tokenizers of every published kind in every form of file they come in."""

import json
import pathlib
import random

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "published"
CORPUS = [
    "a photo of a cat", "two dogs are running on the grass", "What color is the man's shirt?",
    "ein großer Hund läuft über die Straße", "le château de l'été, n'est-ce pas?",
    "写真 は 猫 です", "Ελλάδα ΑΣ σ", "it's 3,000 miles; I'll don't we've", "the-quick_brown (fox)",
    "a bus, a train and a car at 12:45", "is there any water in the glass? yes, there is",
] * 3  # fmt: skip
_BLOCKS = [(0x20, 0x7F)] * 6 + [
    (0xA0, 0x180), (0x300, 0x370), (0x370, 0x400), (0x400, 0x500), (0x5D0, 0x5EB), (0x600, 0x700),
    (0x900, 0x980), (0xE00, 0xE7F), (0x1100, 0x1200), (0xAC00, 0xD7A4), (0x3040, 0x3100),
    (0x4E00, 0x9FFF), (0xFF00, 0xFFEF), (0x2000, 0x2070), (0x2100, 0x2190), (0x2460, 0x2500),
    (0x1F300, 0x1F650), (0xFB00, 0xFB50), (0x200B, 0x2010), (0x2580, 0x2584), (0x0, 0x20),
    (0x7F, 0xA0), (0x1D400, 0x1D500), (0xFE00, 0xFE10), (0xE0100, 0xE0110),
]  # fmt: skip
_WORDS = """a photo of the cat dog's don't I'll 3,000 x.y, hello World's it's we've “quoted” café
 naïve (x) [y] <mask> [MASK] [SEP] [CLS] [PAD] </s> <s> <unk> <pad> <|endoftext|> <|startoftext|>
 [ENC] ΑΣ ΣΣ İstanbul ﬁne ½ straße STRASSE é ͅ 12345 #tag @user http://a.b/c?d=e&f é ﷺ ▁ ▁▁a ``x''
 <extra_id_0> running grass water glass train""".split()


def random_text(rng: random.Random) -> str:
    """Words, special tokens and letters of every script, with every kind of space between."""
    parts = []
    for _ in range(rng.randint(0, 25)):
        if rng.random() < 0.6:
            parts += [rng.choice(_WORDS), rng.choice([" ", "  ", "", "\t", "\n", "\xa0", "\u3000"])]
        else:
            low, high = rng.choice(_BLOCKS)
            parts += [chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 4))]
            parts.append(rng.choice([" ", ""]))
    return "".join(parts)


def random_texts(seed: int, count: int) -> list[str]:
    """Odd texts, the empty one and a long one among them."""
    rng = random.Random(seed)
    return ["", " ", "a photo of a cat " * 30, *(random_text(rng) for _ in range(count))]


def write_json(path: pathlib.Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def wordpieces(lowercase: bool) -> dict[str, int]:
    """A BERT vocabulary."""
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    words.train_from_iterator(CORPUS, trainer)
    return words.get_vocab()


def merges(clip: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary and its merges, with CLIP's word ends or RoBERTa's spaces."""
    words = Tokenizer(models.BPE(**({"end_of_word_suffix": "</w>"} if clip else {})))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if clip:
        words.normalizer = normalizers.Lowercase()
        words.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [] if clip else ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=special,
        initial_alphabet=alphabet,
        show_progress=False,
        **({"end_of_word_suffix": "</w>"} if clip else {}),
    )
    words.train_from_iterator(CORPUS, trainer)
    data = json.loads(words.to_str())["model"]
    vocabulary = dict(data["vocab"])
    if clip:
        for letter in sorted(alphabet):
            vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
        for token in ("<|startoftext|>", "<|endoftext|>"):
            vocabulary[token] = len(vocabulary)
    return vocabulary, [tuple(pair) for pair in data["merges"]]


def write_vocabulary(root: pathlib.Path, config: dict, lowercase: bool = True) -> None:
    """BERT's legacy files."""
    words = wordpieces(lowercase)
    (root / "vocab.txt").write_text(
        "".join(f"{w}\n" for w in sorted(words, key=words.get)), "utf-8"
    )
    if config:
        write_json(root / "tokenizer_config.json", config)


def write_merges(root: pathlib.Path, config: dict, clip: bool) -> None:
    """RoBERTa's or CLIP's legacy files."""
    words, pairs = merges(clip)
    write_json(root / "vocab.json", words)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in pairs)]
    (root / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")
    write_json(root / "tokenizer_config.json", config)


def write_spiece(root: pathlib.Path, config: dict, name: str = "spiece") -> None:
    """The legacy files of SigLIP, ALBERT or T5."""
    (root / "spiece.model").write_bytes((GOLDEN / f"{name}.model").read_bytes())
    write_json(root / "tokenizer_config.json", config)


ROBERTA_MASK = {"content": "<mask>", "lstrip": True, "normalized": False}


def _bert(**config):
    lowercase = config.get("do_lower_case", True)
    config = {"tokenizer_class": "BertTokenizer", "model_max_length": 40, **config}
    return lambda root: write_vocabulary(root, config, lowercase)


def _roberta(root, **config):
    config = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 40, **config}
    write_merges(root, config, clip=False)
    write_json(root / "special_tokens_map.json", {"mask_token": ROBERTA_MASK})


def _clip(root):
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "!"}
    write_merges(root, config, clip=True)
    write_json(root / "special_tokens_map.json", {"pad_token": "<|endoftext|>"})


def _spiece(name="spiece", **config):
    return lambda root: write_spiece(root, {"model_max_length": 64, **config}, name)


def _blip(root):
    _bert(additional_special_tokens=["[DEC]", "[ENC]"])(root)
    size = len((root / "vocab.txt").read_text("utf-8").split("\n")) - 1
    write_json(root / "added_tokens.json", {"[DEC]": size, "[ENC]": size + 1})


# name -> (transformers' class, how the legacy files are written)
LEGACY = {
    "bert": ("BertTokenizer", _bert()),
    "bert-cased": ("BertTokenizer", _bert(do_lower_case=False)),
    "bert-accents": ("BertTokenizer", _bert(strip_accents=False, tokenize_chinese_chars=False)),
    "bert-bare": ("BertTokenizer", lambda root: write_vocabulary(root, {})),
    "blip": ("BertTokenizer", _blip),
    "roberta": ("RobertaTokenizer", _roberta),
    "roberta-space": ("RobertaTokenizer", lambda root: _roberta(root, add_prefix_space=True)),
    "clip": ("CLIPTokenizer", _clip),
    "albert": (
        "AlbertTokenizer",
        _spiece("spiece_albert", tokenizer_class="AlbertTokenizer"),
    ),
    "albert-cased": (
        "AlbertTokenizer",
        _spiece(
            "spiece_albert",
            tokenizer_class="AlbertTokenizer",
            do_lower_case=False,
            keep_accents=True,
        ),
    ),
    "t5": ("T5Tokenizer", _spiece(tokenizer_class="T5Tokenizer", extra_ids=10)),
    "siglip": ("SiglipTokenizer", _spiece(tokenizer_class="SiglipTokenizer", pad_token="</s>")),
    "siglip-cased": (
        "SiglipTokenizer",
        _spiece(tokenizer_class="SiglipTokenizer", do_lower_case=False),
    ),
}  # fmt: skip
