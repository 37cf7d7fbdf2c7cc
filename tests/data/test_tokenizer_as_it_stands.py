"""A tokenizer.json with rules of its own, and tokenizers beside models of another class."""

import json

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mmflax.data.text import tokenizer_files
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.pretrained.processor import PublishedProcessor
from tests.data import published_texts as odd

TEXTS = (
    "in 2023 a photo of 3,000 cats",
    "Straße ＡＢＣ café",
    "a-photo of_a cat",
    "don't #tag",
    "",
)


def source(root, kind):
    """A tokenizer.json of a kind with all its parts, its config, and the token ids."""
    root.mkdir(parents=True, exist_ok=True)
    odd.LEGACY[kind][1](root)
    tokenizer = Tokenizer.load(root)
    for path in root.iterdir():
        path.unlink()
    config = json.loads(tokenizer.files()["tokenizer_config.json"])
    config["added_tokens_decoder"] = {}  # as transformers 4 writes it
    return Backend.from_str(tokenizer.to_json()), config, tokenizer


def write(root, backend, config, model=None):
    root.mkdir(parents=True, exist_ok=True)
    backend.save(str(root / "tokenizer.json"))
    odd.write_json(root / "tokenizer_config.json", config)
    if model is not None:
        odd.write_json(root / "config.json", model)


def _nocls(t, ids):
    t.post_processor = processors.TemplateProcessing(
        single="$A:0 [SEP]:0", pair="$A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=[("[SEP]", ids[1])]
    )


def _noend(t, ids):
    t.post_processor = processors.TemplateProcessing(
        single="<s> $A",
        pair="<s> $A </s> $B",
        special_tokens=[("<s>", ids[0]), ("</s>", ids[1])],
    )


def _sequence(*parts):
    return normalizers.Sequence(list(parts))


def _with_prefix_space(t, ids):
    digits = pre_tokenizers.Digits(individual_digits=True)
    words = pre_tokenizers.ByteLevel(add_prefix_space=True)
    t.pre_tokenizer = pre_tokenizers.Sequence([digits, words])


def _without(t, ids):
    t.post_processor = processors.ByteLevel()  # no special tokens


OWN_RULES = {
    "bert as usual": ("bert", lambda t, ids: None),
    "bert, NFKC": (
        "bert",
        lambda t, ids: setattr(
            t, "normalizer", _sequence(normalizers.NFKC(), normalizers.Lowercase())
        ),
    ),
    "bert, Sequence of its own": (
        "bert",
        lambda t, ids: setattr(
            t, "normalizer", _sequence(normalizers.BertNormalizer(lowercase=False))
        ),
    ),
    "bert, unclean": (
        "bert",
        lambda t, ids: setattr(
            t, "normalizer", normalizers.BertNormalizer(clean_text=False, lowercase=True)
        ),
    ),
    "bert, whitespace": (
        "bert",
        lambda t, ids: setattr(t, "pre_tokenizer", pre_tokenizers.Whitespace()),
    ),
    "bert, no [CLS]": ("bert", _nocls),
    "roberta as usual": ("roberta", lambda t, ids: None),
    "roberta, digits": ("roberta", _with_prefix_space),
    "roberta, lower case": (
        "roberta",
        lambda t, ids: setattr(t, "normalizer", normalizers.Lowercase()),
    ),
    "roberta, no end": ("roberta", _noend),
    "roberta, no special tokens": ("roberta", _without),
    "clip, cased": ("clip", lambda t, ids: setattr(t, "normalizer", normalizers.NFC())),
    "t5, lower case": ("t5", lambda t, ids: setattr(t, "normalizer", normalizers.Lowercase())),
}


@pytest.mark.parametrize("name", OWN_RULES)
@pytest.mark.parametrize("class_name", [None, "PreTrainedTokenizerFast"])
def test_a_file_is_read_as_it_stands(name, class_name, tmp_path):
    kind, change = OWN_RULES[name]
    backend, config, tokenizer = source(tmp_path / "source", kind)
    if kind == "roberta":
        config["add_prefix_space"] = False
    change(backend, (tokenizer.cls_id, tokenizer.sep_id))
    config["tokenizer_class"] = class_name or config["tokenizer_class"]
    write(tmp_path / "own", backend, config)
    loaded = Tokenizer.load(tmp_path / "own")
    (tmp_path / "again").mkdir()
    for file, text in loaded.files().items():
        (tmp_path / "again" / file).write_text(text, encoding="utf-8")
    for one in (loaded, Tokenizer.load(tmp_path / "again")):
        for text in (*TEXTS, *odd.random_texts(4, 10)):
            expected = backend.encode(text)
            assert one.ids_and_types(text, 2000) == (expected.ids, expected.type_ids), text
            expected = backend.encode(text, "a cat")
            assert one.ids_and_types(text, 2000, "a cat") == (expected.ids, expected.type_ids)


@pytest.mark.parametrize(
    ("class_name", "listed", "around"),
    [
        ("BertTokenizer", True, 0),  # transformers 4 wrote the file and adds nothing
        ("BertTokenizer", False, 2),  # transformers 5 builds the class's own
        ("TokenizersBackend", False, 0),
        ("PreTrainedTokenizerFast", True, 0),
    ],
)
def test_a_file_without_a_post_processor(class_name, listed, around, tmp_path):
    backend, config, _ = source(tmp_path / "source", "bert")
    data = json.loads(backend.to_str()) | {"post_processor": None}
    config["tokenizer_class"] = class_name
    if not listed:
        del config["added_tokens_decoder"]
    write(tmp_path / "own", Backend.from_str(json.dumps(data)), config)
    tokenizer = Tokenizer.load(tmp_path / "own")
    assert tokenizer.template.num_special(pair=False) == around
    (tmp_path / "again").mkdir()
    for file, text in tokenizer.files().items():
        (tmp_path / "again" / file).write_text(text, encoding="utf-8")
    assert Tokenizer.load(tmp_path / "again").template == tokenizer.template


def test_switches_overrule_the_class_s_own_rules_only(tmp_path):
    backend, config, _ = source(tmp_path / "source", "bert")
    write(tmp_path / "cased", backend, {**config, "do_lower_case": False})
    cased = Tokenizer.load(tmp_path / "cased")
    assert cased.ids_and_types("CAT", 9) != cased.ids_and_types("cat", 9)
    general = {**config, "do_lower_case": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    write(tmp_path / "general", backend, general)
    lower = Tokenizer.load(tmp_path / "general")  # this class has no such switch
    assert lower.ids_and_types("CAT", 9) == lower.ids_and_types("cat", 9)


CLASSES = (None, "", "PreTrainedTokenizerFast", "TokenizersBackend", "RobertaTokenizer")


@pytest.mark.parametrize("class_name", CLASSES)
@pytest.mark.parametrize(
    ("model", "longest"),
    [
        ({"model_type": "roberta", "max_position_embeddings": 34, "pad_token_id": 1}, 32),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 34}, 32),
        ({"model_type": "camembert", "max_position_embeddings": 34, "pad_token_id": None}, 32),
        (
            {
                "model_type": "bridgetower",
                "text_config": {"max_position_embeddings": 34, "pad_token_id": 1},
            },
            32,
        ),
        (
            {
                "model_type": "vision-text-dual-encoder",
                "text_config": {"model_type": "roberta", "max_position_embeddings": 34},
            },
            32,
        ),
        ({"model_type": "bert", "max_position_embeddings": 34, "pad_token_id": 1}, 34),
    ],
)
def test_the_longest_text_goes_by_the_model(class_name, model, longest, tmp_path):
    backend, config, _ = source(tmp_path / "source", "roberta")
    config |= {"tokenizer_class": class_name, "model_max_length": 512}
    write(tmp_path / "own", backend, config, model)
    processor = PublishedProcessor.load(tmp_path / "own")
    assert processor.max_length == longest
    assert processor.texts(["a photo of a cat " * 40])["tokens"].shape == (1, longest)


@pytest.mark.parametrize(
    ("class_name", "model_type", "kind"),
    [
        ("PreTrainedTokenizerFast", "blip", "bert"),
        ("TokenizersBackend", "vilt", "bert"),
        (None, "bert", "bert"),
        ("BertTokenizerFast", "roberta", "bert"),
        ("PreTrainedTokenizerFast", "roberta", ""),  # the file is none of RoBERTa's
        ("SiglipTokenizer", "siglip", ""),
        ("GemmaTokenizer", "siglip", ""),
    ],
)
def test_the_kind_is_the_family_s_where_the_class_says_none(class_name, model_type, kind, tmp_path):
    backend, config, tokenizer = source(tmp_path / "source", "bert")
    config["tokenizer_class"] = class_name
    write(tmp_path / "own", backend, config, {"model_type": model_type})
    loaded = Tokenizer.load(tmp_path / "own")
    assert loaded.kind == kind
    assert loaded.ids_and_types("a photo", 9) == tokenizer.ids_and_types("a photo", 9)


def test_meter_has_the_positions_of_its_tokenizer():
    meter = {"model_type": "meter"}
    assert tokenizer_files.position_offset(meter, "roberta", 1) == 2
    assert tokenizer_files.position_offset(meter, "bert", 0) == 0


@pytest.mark.parametrize("given", [True, None, False])
def test_texts_of_siglip_2_are_lower_cased(given, tmp_path):
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyzABC"]
    words = {token: index for index, token in enumerate(tokens)}
    backend = Backend(models.BPE(words, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Replace("▁", " ")
    backend.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", 1)]
    )
    config = {
        "tokenizer_class": "GemmaTokenizer", "bos_token": "<bos>", "eos_token": "<eos>",
        "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 64,
    }  # fmt: skip
    if given is not None:
        config["do_lower_case"] = given
    write(tmp_path, backend, config, {"model_type": "siglip"})
    processor = PublishedProcessor.load(tmp_path)
    batch = processor.texts(["A cat AB"])
    assert processor.tokenizer.reads_padding and batch["text_mask"].all()
    read = "A cat AB" if given is False else "a cat ab"
    expected = [words[letter] for letter in read.replace(" ", "▁")] + [1]
    assert batch["tokens"].tolist() == [expected + [0] * (64 - len(expected))]
