"""Texts of a published tokenizer: ids as recorded, and as transformers gives them."""

import io
import json
import random

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers

from mmflax.data.text import sentencepiece, special_tokens
from mmflax.data.text.tokenizer import Tokenizer
from mmflax.errors import MmflaxError
from tests.data import published_texts as odd

LENGTHS = (8, 16, 40, 64)


def original(name, root):
    """transformers' tokenizer of a directory with legacy files."""
    transformers = pytest.importorskip("transformers")
    class_name, write = odd.LEGACY[name]
    if class_name in ("AlbertTokenizer", "SiglipTokenizer", "T5Tokenizer"):
        pytest.importorskip("sentencepiece")
    root.mkdir(parents=True)
    write(root)
    return getattr(transformers, class_name).from_pretrained(root)


@pytest.fixture(params=odd.LEGACY)
def both(request, tmp_path):
    """transformers' tokenizer and ours, from legacy files, its own files, and ours."""
    theirs = original(request.param, tmp_path / "legacy")
    theirs.save_pretrained(tmp_path / "json")
    legacy = Tokenizer.load(tmp_path / "legacy")
    for name, text in legacy.files().items():
        (tmp_path / "ours").mkdir(exist_ok=True)
        (tmp_path / "ours" / name).write_text(text, encoding="utf-8")
    forms = ("json", "ours", "ours/tokenizer.json")
    return theirs, [legacy, *(Tokenizer.load(tmp_path / form) for form in forms)]


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:This sequence already has")
def test_ids_are_those_of_transformers(both):
    """Any text and any two: their ids, masks, token types, truncation and decoded texts."""
    theirs, ours = both
    texts = odd.random_texts(3, 150)
    rng = random.Random(0)
    for index, text in enumerate(texts):
        length, second = LENGTHS[index % len(LENGTHS)], rng.choice(texts)
        one = theirs(text, padding="max_length", truncation=True, max_length=length)
        two = theirs(
            [text], [second], truncation=True, max_length=length, return_token_type_ids=True
        )
        whole = theirs(text)["input_ids"]
        decoded = theirs.decode(whole, skip_special_tokens=True)
        for tokenizer in ours:
            tokens, mask = tokenizer.encode(text, length)
            assert tokens.tolist() == one["input_ids"], text
            if not tokenizer.reads_padding:
                assert mask.astype(int).tolist() == one["attention_mask"]
            ids, types = tokenizer.ids_and_types(text, length, second)
            assert ids == two["input_ids"][0], (text, second)
            if not tokenizer.reads_padding:  # SigLIP has none; theirs count "</s></s>" twice
                assert types == two["token_type_ids"][0]
            assert tokenizer.decode(whole) == decoded


@pytest.mark.parity
def test_roles_are_those_of_transformers(both):
    theirs, ours = both
    for tokenizer in ours:
        assert tokenizer.pad_id == theirs.pad_token_id
        assert tokenizer.unk_id == theirs.unk_token_id
        assert tokenizer.mask_id == theirs.mask_token_id
        assert tokenizer.vocab_size == len(theirs)
        begin = theirs.cls_token_id if theirs.cls_token_id is not None else theirs.bos_token_id
        end = theirs.sep_token_id if theirs.sep_token_id is not None else theirs.eos_token_id
        assert (tokenizer.cls_id, tokenizer.sep_id) == (begin, end)
        longest = theirs.model_max_length
        assert tokenizer.max_length == (longest if longest < 1e9 else None)


def test_our_files_are_our_tokenizer(tmp_path):
    """What is written is read back the same, and a tokenizer.json that others can read."""
    for name, (_, write) in odd.LEGACY.items():
        root = tmp_path / name
        root.mkdir()
        write(root)
        tokenizer = Tokenizer.load(root)
        again = root / "again"
        again.mkdir()
        for file, text in tokenizer.files().items():
            (again / file).write_text(text, encoding="utf-8")
        Backend.from_file(str(again / "tokenizer.json"))
        loaded = Tokenizer.load(again / "tokenizer.json")
        assert loaded == tokenizer == Tokenizer.load(again)
        for text in odd.random_texts(5, 20):
            assert loaded.ids_and_types(text, 30, "a cat") == tokenizer.ids_and_types(
                text, 30, "a cat"
            )


def test_siglip_text_is_cleaned_and_its_padding_read(tmp_path):
    odd.LEGACY["siglip"][1](tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    plain, mask = tokenizer.encode("a photo of a cat", 16)
    assert mask.all() and tokenizer.mask_id is None and tokenizer.cls_id is None
    for text in ("A photo,  of a CAT!", "a photo\nof a cat.", " a pho-to of a cat "):
        assert tokenizer.encode(text, 16)[0].tolist() == plain.tolist()
    ended = tokenizer.encode("a photo of a cat</s>", 16)[0]
    assert ended.tolist() == plain.tolist()  # not ended twice
    assert tokenizer.decode(plain) == "a photo of a cat"


def test_families_have_the_tokens_they_have(tmp_path):
    for name in ("clip", "roberta", "t5"):
        (tmp_path / name).mkdir()
        odd.LEGACY[name][1](tmp_path / name)
    clip, roberta, t5 = (Tokenizer.load(tmp_path / name) for name in ("clip", "roberta", "t5"))
    assert clip.mask_id is None and clip.pad_id == clip.sep_id == clip.unk_id
    assert clip.template.single == ((clip.cls_id, 0), ("A", 0), (clip.sep_id, 0))
    assert roberta.template.num_special(pair=True) == 4 and roberta.mask_id is not None
    assert t5.cls_id is None and t5.template.single == (("A", 0), (t5.sep_id, 0))
    assert clip.continuation == roberta.continuation == ()
    for tokenizer, shown in ((clip, "photo"), (roberta, "photo")):
        ids = tokenizer.ids_and_types("a photo", 9)[0]
        assert "".join(tokenizer.token(i) for i in ids[2:-1]) == shown


def test_two_long_texts_share_the_room():
    assert special_tokens.share(3, 4, 10) == (3, 4)
    assert special_tokens.share(9, 2, 8) == (6, 2)
    assert special_tokens.share(2, 9, 8) == (2, 6)
    assert special_tokens.share(9, 9, 7) == (3, 4)


def test_the_file_of_sentencepiece_is_read():
    model = sentencepiece.parse((odd.GOLDEN / "spiece_albert.model").read_bytes(), "the file")
    assert model.unk_id == 1 and model.pieces[1].kind == sentencepiece.UNKNOWN
    own = [piece.text for piece in model.pieces if piece.kind == sentencepiece.USER_DEFINED]
    assert own == ["(", ")", "[MASK]", "-"]


def siglip_text(vocabulary, charsmap=b"", hidden=(), unk_id=0, byte_fallback=False):
    backend = Backend(models.Unigram(vocabulary, unk_id, byte_fallback))
    if charsmap:
        backend.normalizer = normalizers.Precompiled(charsmap)
    specials = {f"<special {index}>": index for index in hidden}
    return sentencepiece.SiglipText(json.loads(backend.to_str()), specials, unk_id, True)


def test_spaces_are_those_of_sentencepiece():
    text = siglip_text([("<unk>", 0.0), ("▁a", -1.0), ("b", -2.0)])
    assert text.normalize("  a \t  b ") == "▁a▁\t▁b" and text.encode("ab a") == [1, 2, 1]
    assert text.encode("") == text.encode("   ") == text.encode("▁ ▁") == []


def test_combining_characters_are_mapped_by_the_longest_match():
    """The library's own normalizer drops the second accent and does not join the others."""
    model = sentencepiece.parse((odd.GOLDEN / "spiece.model").read_bytes(), "the file")
    text = siglip_text([("<unk>", 0.0), ("▁", -1.0)], model.charsmap)
    for given, expected in (
        ("e\u0301\u0302", "é\u0302"),
        ("\uff76\uff9e", "ガ"),
        ("\u1100\u1161", "가"),
        ("ﬁ ½", "fi▁1⁄2"),
    ):
        assert text.normalize(given) == f"▁{expected}"
    library = normalizers.Precompiled(model.charsmap)
    assert library.normalize_str("e\u0301\u0302") == "é"


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["recorded", "identity", "byte_fallback"])
def test_normalization_and_ids_are_those_of_sentencepiece(kind):
    """Also of unknown characters, bytes that stand for them, and control tokens in a text."""
    library = pytest.importorskip("sentencepiece")
    data = (odd.GOLDEN / "spiece.model").read_bytes()
    if kind != "recorded":
        trained = io.BytesIO()
        fallback = kind == "byte_fallback"
        library.SentencePieceTrainer.train(
            sentence_iterator=iter(odd.CORPUS), model_writer=trained, vocab_size=340,
            hard_vocab_limit=False, control_symbols="[CLS],[MASK]", byte_fallback=fallback,
            normalization_rule_name="nfkc_cf" if fallback else "identity", minloglevel=2,
        )  # fmt: skip
        data = trained.getvalue()
    theirs = library.SentencePieceProcessor(model_proto=data)
    model = sentencepiece.parse(data, "the file")
    assert model.byte_fallback == (kind == "byte_fallback")
    hidden = [i for i, piece in enumerate(model.pieces) if piece.kind == sentencepiece.CONTROL]
    words = [(piece.text, piece.score) for piece in model.pieces]
    ours = siglip_text(words, model.charsmap, hidden, model.unk_id, model.byte_fallback)
    for text in odd.random_texts(8, 600):
        assert ours.normalize(text) == theirs.normalize(text)
        assert ours.encode(text) == theirs.encode(text), text


def _write(root, **files):
    for name, value in files.items():
        odd.write_json(root / f"{name}.json", value)


def _bert(root, **config):
    odd.write_vocabulary(root, {"tokenizer_class": "BertTokenizer", **config})


def _spiece(root, *settings):
    """A T5 tokenizer whose file has one piece and these settings."""
    _write(root, tokenizer_config={"tokenizer_class": "T5Tokenizer"})
    piece = b"\x0a\x01a\x15\0\0\0\0"  # field 1, text; field 2, score
    (root / "spiece.model").write_bytes(b"\x0a\x08" + piece + b"".join(settings))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda root: None, "no tokenizer in .*; expected tokenizer.json, vocab.txt"),
        (lambda root: _bert(root, padding_side="left"), "pads on the left"),
        (
            lambda root: _bert(root, added_tokens_decoder={"900": {"content": "[NEW]"}}),
            "gives '.NEW.' the id 900",
        ),
        (lambda root: (root / "spiece.model").write_bytes(b"\xff\xff"), "unknown class"),
        (lambda root: _spiece(root, b"\x0f\xff"), "not a SentencePiece model"),
        (lambda root: _spiece(root, b"\x12\x02\x18\x02"), "of type 2, expected Unigram"),
        (lambda root: _spiece(root, b"\x1a\x02\x18\x00"), "another add_dummy_prefix than usual"),
        (
            lambda root: odd.write_spiece(
                root, {"tokenizer_class": "SiglipTokenizer"}, "spiece_albert"
            ),
            r"user-defined symbols \('\('\), which SigLIP",
        ),
        (lambda root: (root / "tokenizer.json").write_text("{"), "not a readable tokenizer.json"),
        (
            lambda root: [
                (root / "tokenizer_config.json").write_text("["),
                (root / "tokenizer.json").write_text("{}"),
            ],
            "tokenizer_config.json is not JSON",
        ),
        (
            lambda root: (root / "tokenizer.json").write_text(
                Backend(models.BPE({"a": 0}, [])).to_str()
            ),
            "does not say which tokens begin and end",
        ),
        (
            lambda root: [
                _write(root, vocab={"a": 0}),
                (root / "merges.txt").write_text("a b c\n"),
            ],
            "vocab.json and merges.txt cannot be used",
        ),
    ],
)
def test_errors(write, message, tmp_path):
    write(tmp_path)
    with pytest.raises(MmflaxError, match=message):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_json_alone_says_what_it_can(tmp_path):
    odd.LEGACY["roberta"][1](tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    data = json.loads(tokenizer.to_json())
    data["post_processor"] = {
        "type": "RobertaProcessing", "sep": ["</s>", tokenizer.sep_id],
        "cls": ["<s>", tokenizer.cls_id], "trim_offsets": True, "add_prefix_space": False,
    }  # fmt: skip
    (tmp_path / "alone").mkdir()
    odd.write_json(tmp_path / "alone" / "tokenizer.json", data)
    alone = Tokenizer.load(tmp_path / "alone" / "tokenizer.json")
    for text in odd.random_texts(2, 10):
        assert alone.ids_and_types(text, 20, "b") == tokenizer.ids_and_types(text, 20, "b")
    roles = ("pad_id", "unk_id", "cls_id", "sep_id", "mask_id")
    assert [getattr(alone, r) for r in roles[2:]] == [getattr(tokenizer, r) for r in roles[2:]]
    assert alone.pad_id == tokenizer.pad_id
