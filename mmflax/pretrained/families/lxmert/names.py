"""Names of LXMERT's checkpoints: those of transformers, and those of the original program.

The original saves a whole training program's modules, so that prefixes differ: `module.bert.` and
`module.answer_head.` after pretraining on several devices, `lxrt_encoder.model.bert.` and
`logit_fc.` after fine-tuning. Where a config.json in transformers' keys stands beside such a file,
for one fine-tuned on NLVR2 its `architectures` name `NLVR2Model`, the class of the original;
without it the shapes tell the sizes (`recognise`).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families.bert.names import (
    ENCODER,
    bert_attention,
    bert_layer,
    count,
    count_labels,
    dense,
    encoder_fields,
    has,
    norm,
    recognised_text,
    word_head,
)
from mmflax.pretrained.rules import Rule, Shape, Table, under

MODEL_TYPES = ("lxmert",)

REGIONS = (
    *dense("visn_fc.visn_fc", "feature_projection"),
    *norm("visn_fc.visn_layer_norm", "feature_norm"),
    *dense("visn_fc.box_fc", "box_projection"),
    *norm("visn_fc.box_layer_norm", "box_norm"),
    *bert_layer("r_layers.{i}", "encoder/layers_{i}/"),
)


def stream(theirs: str, name: str) -> tuple[Rule, ...]:
    """One side of a cross layer: `lang` or `visn`, our `text` or `image`."""
    theirs, ours = f"x_layers.{{i}}.{theirs}", f"encoder/layers_{{i}}/{name}/"
    return (
        *bert_attention(f"{theirs}_self_att", f"{ours}attention"),
        *dense(f"{theirs}_inter.dense", f"{ours}mlp/fc1"),
        *dense(f"{theirs}_output.dense", f"{ours}mlp/fc2"),
        *norm(f"{theirs}_output.LayerNorm", f"{ours}mlp_norm"),
    )


FUSION = (
    *bert_attention(
        "x_layers.{i}.visual_attention", "encoder/layers_{i}/cross_attention", inner="att"
    ),
    *stream("lang", "text"),
    *stream("visn", "image"),
)


def head(theirs: str) -> tuple[Rule, ...]:
    """Our `VQAHead` of the form "lxmert", a Sequential with GELU at 1."""
    return (
        *dense(f"{theirs}.0", "head/fc1"),
        *norm(f"{theirs}.2", "head/norm"),
        *dense(f"{theirs}.3", "head/fc2"),
    )


def prefix_of(names: Collection[str], end: str, source: str) -> str:
    """What stands before a tensor's name that every file of the family has."""
    found = sorted(name.removesuffix(end) for name in names if name.endswith(end))
    if not found:
        raise MmflaxError(f"the checkpoint has no {end}; expected one of {source}.")
    return found[0]


def backbone(names: Collection[str]) -> str:
    """`lxmert.`, `module.bert.`, `lxrt_encoder.model.bert.` or nothing."""
    return prefix_of(names, "embeddings.word_embeddings.weight", "LXMERT")


def words(config: Mapping[str, Any], names: Collection[str]) -> str:
    """Whether a file predicts words, and by which table."""
    if not has(names, "cls.predictions.bias"):
        return "none"
    return "tied" if config.get("tie_word_embeddings", True) else "own"


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """`name` of the family's module and its keywords."""
    text = encoder_fields({**config, "num_hidden_layers": config["l_layers"]})
    text["epsilon"] = 1e-12
    shared = {key: text[key] for key in LAYER_FIELDS}
    if config.get("visual_pos_dim", 4) != 4:
        raise MmflaxError(
            f"the config has visual_pos_dim {config['visual_pos_dim']}; expected 4, the corners of "
            "a box."
        )
    pair = "NLVR2Model" in (config.get("architectures") or ())
    sizes = dict(
        obj=config.get("num_object_labels"),
        attr=config.get("num_attr_labels"),
        feat=config.get("visual_feat_dim", 2048),
    )
    return dict(
        name="lxmert",
        text_encoder=text,
        image_encoder=dict(
            form="lxmert",
            depth=config["r_layers"],
            feature_dim=config.get("visual_feat_dim", 2048),
            **shared,
        ),
        fusion=dict(form="lxmert", depth=config["x_layers"], **shared),
        answers=config["num_qa_labels"] if has(names, "logit_fc.3.weight") and not pair else 0,
        labels=count_labels(config) if pair else 0,
        word_head=words(config, names),
        matching=has(names, "cls.seq_relationship.weight"),
        region_heads={
            key: size for key, size in sizes.items() if has(names, f"decoder_dict.{key}.weight")
        },
    )


LAYER_FIELDS = (
    "width", "num_heads", "mlp_dim", "activation", "epsilon", "dropout_rate",
    "attention_dropout_rate",
)  # fmt: skip


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of an LXMERT checkpoint, under the prefixes that this one has."""
    bert = backbone(names)
    # Heads lie beside the backbone, the original's fine-tuned one at the top.
    tuned = "logit_fc"
    root = bert.removesuffix("bert.").removesuffix("lxmert.") if bert else ""
    predictions = f"{root}cls.predictions"
    decoder = f"{predictions}.decoder.weight"
    tied = ((decoder, f"{bert}embeddings.word_embeddings.weight"),)
    return Table(
        rules=(
            *under(bert, "text_encoder/", ENCODER),
            *under(f"{bert}encoder.", "image_encoder/", REGIONS),
            *under(f"{bert}encoder.", "fusion/", FUSION),
            *dense(f"{bert}pooler.dense", "fusion/text_pooler/dense"),
            *head(tuned if f"{tuned}.0.weight" in names else f"{root}answer_head.{tuned}"),
            *word_head(f"{predictions}.transform", decoder, f"{predictions}.bias"),
            *dense(f"{root}cls.seq_relationship", "matching_head"),
            *dense(f"{root}obj_predict_head.transform.dense", "region_dense"),
            *norm(f"{root}obj_predict_head.transform.LayerNorm", "region_norm"),
            *(
                row
                for key in ("obj", "attr", "feat")
                for row in dense(f"{root}obj_predict_head.decoder_dict.{key}", f"region_{key}")
            ),
        ),
        tied=tied if words(config, names) == "tied" else (),
        unused=(r"embeddings\.position_ids$",),  # a constant, saved as a buffer by older releases
    )


def ending(shapes: Mapping[str, Shape], end: str) -> Shape:
    """The shape of the tensor whose name ends so; () without one."""
    return next((shape for name, shape in shapes.items() if name.endswith(end)), ())


def recognise(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """The config of a file without one, if it is LXMERT's.

    Sizes are read from the shapes. They do not tell heads, which are 64 wide, nor activation and
    dropout, which are the published ones: GELU and 0.1. A head over twice the width with two
    classes is that of NLVR2.
    """
    if not has(shapes, "encoder.visn_fc.visn_fc.weight"):
        return None
    bert = backbone(shapes)
    layers = re.escape(f"{bert}encoder.")
    config: dict[str, Any] = dict(
        model_type="lxmert",
        **recognised_text(shapes, bert, "LXMERT"),
        l_layers=count(shapes, layers + r"layer\.(\d+)\."),
        x_layers=count(shapes, layers + r"x_layers\.(\d+)\."),
        r_layers=count(shapes, layers + r"r_layers\.(\d+)\."),
        visual_feat_dim=shapes[f"{bert}encoder.visn_fc.visn_fc.weight"][1],
        visual_pos_dim=shapes[f"{bert}encoder.visn_fc.box_fc.weight"][1],
    )
    for key, end in (
        ("num_qa_labels", "logit_fc.3.weight"),
        ("num_object_labels", "decoder_dict.obj.weight"),
        ("num_attr_labels", "decoder_dict.attr.weight"),
    ):
        found = ending(shapes, end)
        if found:
            config[key] = found[0]
    first = ending(shapes, "logit_fc.0.weight")
    if first and first[1] == 2 * config["hidden_size"]:
        config |= dict(architectures=["NLVR2Model"], num_labels=config.pop("num_qa_labels"))
    return config
