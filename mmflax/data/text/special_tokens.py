"""Special tokens: their roles, and the templates that add them to texts."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import processors

from mmflax.errors import MmflaxError

TEXT, SECOND = "A", "B"
ROLES = ("pad", "unk", "cls", "sep", "mask")
# The keys that name the token of a role in tokenizer_config.json.
KEYS: dict[str, tuple[str, ...]] = {role: (f"{role}_token",) for role in ROLES} | {
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
}
# The token of every role by the kind of tokenizer, where the files name none.
DEFAULTS: dict[str, tuple[str | None, ...]] = {
    "bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    "roberta": ("<pad>", "<unk>", "<s>", "</s>", "<mask>"),
    "clip": ("<|endoftext|>", "<|endoftext|>", "<|startoftext|>", "<|endoftext|>", None),
    "siglip": ("</s>", "<unk>", None, "</s>", None),
    "albert": ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"),
    "t5": ("<pad>", "<unk>", None, "</s>", None),
}
Roles = Mapping[str, int | None]  # None where the family has no such token
Part = tuple[int | str, int]  # a token's id, TEXT or SECOND; then the token type


class Template(NamedTuple):
    """The special tokens of one text, and of two texts that are read together."""

    single: tuple[Part, ...]
    pair: tuple[Part, ...]

    def num_special(self, pair: bool) -> int:
        """How many special tokens a text (or two) is given."""
        return sum(isinstance(what, int) for what, _ in (self.pair if pair else self.single))

    def apply(
        self, text: Sequence[int], second: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]]:
        """Ids and token types of a text, or two, among the special tokens."""
        ids: list[int] = []
        types: list[int] = []
        for what, kind in self.single if second is None else self.pair:
            new = [what] if isinstance(what, int) else text if what == TEXT else second or ()
            ids += new
            types += [kind] * len(new)
        return ids, types


# No special tokens: what a tokenizer without a post-processor does.
BARE = Template(((TEXT, 0),), ((TEXT, 0), (SECOND, 1)))


def bert_template(cls: int, sep: int) -> Template:
    """`[CLS] a [SEP] b [SEP]`, with type 1 from b on."""
    single: tuple[Part, ...] = ((cls, 0), (TEXT, 0), (sep, 0))
    return Template(single, (*single, (SECOND, 1), (sep, 1)))


def roberta_template(cls: int, sep: int) -> Template:
    """`<s> a </s></s> b </s>`, all of type 0; CLIP's too, with its own tokens."""
    single: tuple[Part, ...] = ((cls, 0), (TEXT, 0), (sep, 0))
    return Template(single, (*single, (sep, 0), (SECOND, 0), (sep, 0)))


def template_of_kind(kind: str, roles: Roles) -> Template | None:
    """The template of a kind of tokenizer; None where the kind or a token is not known."""
    cls, sep = roles["cls"], roles["sep"]
    if sep is not None and kind in ("siglip", "t5"):  # `a </s> b </s>`
        return Template(((TEXT, 0), (sep, 0)), ((TEXT, 0), (sep, 0), (SECOND, 0), (sep, 0)))
    if sep is not None and cls is not None and kind:
        return (roberta_template if kind in ("clip", "roberta") else bert_template)(cls, sep)
    return None


def template_of(section: Mapping[str, Any] | None) -> Template | None:
    """The template in the `post_processor` of a tokenizer.json, if there is one."""
    if section is None:
        return None
    for one in section["processors"] if section["type"] == "Sequence" else (section,):
        if one["type"] == "TemplateProcessing":
            ids = {name: token["ids"] for name, token in one["special_tokens"].items()}
            return Template(_template(one["single"], ids), _template(one["pair"], ids))
        if one["type"] in ("RobertaProcessing", "BertProcessing"):
            build = roberta_template if one["type"] == "RobertaProcessing" else bert_template
            return build(one["cls"][1], one["sep"][1])
    return None


def post_processor(
    template: Template, backend: tokenizers.Tokenizer
) -> processors.TemplateProcessing:
    """The section of a tokenizer.json that says the template."""

    def said(parts: Sequence[Part]) -> list[str]:
        names = (
            backend.id_to_token(what) if isinstance(what, int) else f"${what}" for what, _ in parts
        )
        return [f"{name}:{kind}" for name, (_, kind) in zip(names, parts, strict=True)]

    ids = {what for what, _ in template.pair + template.single if isinstance(what, int)}
    return processors.TemplateProcessing(
        single=said(template.single),
        pair=said(template.pair),
        special_tokens=[(backend.id_to_token(index), index) for index in sorted(ids)],
    )


def checked_template(roles: Roles, template: Template | None, source: str) -> Template:
    """The template, else BERT's; raises MmflaxError where a text could not be wrapped or padded."""
    template = template or template_of_kind("bert", roles)
    if template is None or roles["pad"] is None:
        lack = (
            "which tokens begin and end a text" if template is None else "which token pads a text"
        )
        raise MmflaxError(
            f"{source} does not say {lack}; put the tokenizer_config.json that belongs to it "
            "beside it, with pad_token, cls_token and sep_token."
        )
    return template


def named(config: Mapping[str, Any], kind: str) -> dict[str, str | None]:
    """The token of every role: as the files name it, else as its kind has it."""
    tokens = dict(zip(ROLES, DEFAULTS.get(kind, (None,) * len(ROLES)), strict=True))
    for role, keys in KEYS.items():
        given = next((config[key] for key in keys if config.get(key)), None)
        if given is not None:
            tokens[role] = given["content"] if isinstance(given, Mapping) else str(given)
    return tokens


def roles_of(backend: tokenizers.Tokenizer, data: Mapping[str, Any]) -> dict[str, int | None]:
    """The roles from the contents of a tokenizer.json, else by the usual names."""

    def usual(*tokens: str) -> int | None:
        ids = map(backend.token_to_id, tokens)
        return next((index for index in ids if index is not None), None)

    template, model, padding = template_of(data["post_processor"]), data["model"], data["padding"]
    around = [what for what, _ in template.single] if template else [TEXT]
    begin, end = around[: around.index(TEXT)], around[around.index(TEXT) + 1 :]
    unknown = model.get("unk_token")
    pad = "[PAD]" if model["type"] == "WordPiece" else "<pad>"
    return {
        "pad": padding["pad_id"] if padding else usual(pad),
        "unk": usual(unknown) if unknown else model.get("unk_id"),
        "cls": int(begin[0]) if begin else (None if template else usual("[CLS]", "<s>")),
        "sep": int(end[-1]) if end else (None if template else usual("[SEP]", "</s>")),
        "mask": usual("[MASK]", "<mask>"),
    }


def share(first: int, second: int, room: int) -> tuple[int, int]:
    """How many pieces of each text stay where both have `room`: the longer one loses first.

    What `longest_first` means in the `tokenizers` library.
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = short if short > room else max(short, room - short)
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if first > second else (short, long)


def _template(parts: Sequence[Mapping[str, Any]], ids: Mapping[str, Sequence[int]]) -> tuple:
    template: list[Part] = []
    for part in parts:
        ((kind, value),) = part.items()
        what = (value["id"],) if kind == "Sequence" else ids[value["id"]]
        template += [(one, value["type_id"]) for one in what]
    return tuple(template)
