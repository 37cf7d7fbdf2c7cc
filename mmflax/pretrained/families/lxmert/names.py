"""Names of LXMERT's checkpoints: those of transformers, and those of the original program.

The original saves a whole training program's modules, so that prefixes differ: `module.bert.` and
`module.answer_head.` after pretraining on several devices, `lxrt_encoder.model.bert.` and
`logit_fc.` after fine-tuning. Where a config.json in transformers' keys stands beside such a file,
for one fine-tuned on NLVR2 its `architectures` name `NLVR2Model`, the class of the original;
without it sizes are read from the shapes (`recognize`).
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    COUNT,
    FLAG,
    SIZE,
    Key,
    Keys,
)
from mmflax.pretrained.rules import Shape, Table, under

MODEL_TYPES = ("lxmert",)

KEYS = {
    "lxmert": Keys(
        used={key: configs.BERT_USED[key] for key in configs.BERT_USED if "layer" not in key}
        | dict(
            l_layers=Key(COUNT, 9),
            x_layers=Key(SIZE, 5),
            r_layers=Key(COUNT, 5),
            visual_feat_dim=Key(SIZE, 2048),
            num_qa_labels=Key(SIZE, 9500),
            num_object_labels=Key(SIZE, 1600),
            num_attr_labels=Key(SIZE, 400),
            tie_word_embeddings=Key(FLAG, True),
        ),
        fixed=dict(visual_pos_dim=(4,)),
        # The epsilon is 1e-12 whatever stands here; which heads there are is seen in the file.
        harmless=(
            "layer_norm_eps", "num_hidden_layers", "position_embedding_type", "task_mask_lm",
            "task_matched", "task_obj_predict", "task_qa", "visual_attr_loss", "visual_feat_loss",
            "visual_loss_normalizer", "visual_obj_loss",
        ),
    )
}  # fmt: skip

REGIONS = (
    *rows.dense("visn_fc.visn_fc", "feature_projection"),
    *rows.norm("visn_fc.visn_layer_norm", "feature_norm"),
    *rows.dense("visn_fc.box_fc", "box_projection"),
    *rows.norm("visn_fc.box_layer_norm", "box_norm"),
    *rows.bert_layer("r_layers.{i}", "encoder/layers_{i}/"),
)


def stream(theirs: str, name: str) -> rows.Rows:
    """One side of a cross layer: `lang` or `visn`, our `text` or `image`."""
    theirs, ours = f"x_layers.{{i}}.{theirs}", f"encoder/layers_{{i}}/{name}/"
    return (
        *rows.bert_attention(f"{theirs}_self_att", f"{ours}attention"),
        *rows.bert_mlp(f"{theirs}_inter", f"{theirs}_output", ours),
    )


FUSION = (
    *rows.bert_attention(
        "x_layers.{i}.visual_attention", "encoder/layers_{i}/cross_attention", inner="att"
    ),
    *stream("lang", "text"),
    *stream("visn", "image"),
)


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    text = configs.bert_fields(
        {**config, "num_hidden_layers": config["l_layers"], "layer_norm_eps": 1e-12}
    )
    shared = configs.layer_fields(text)
    pair = configs.architecture(config, "NLVR2Model")
    sizes = dict(
        obj=config["num_object_labels"],
        attr=config["num_attr_labels"],
        feat=config["visual_feat_dim"],
    )
    return dict(
        name="lxmert",
        text_encoder=text,
        image_encoder=dict(
            form="lxmert",
            depth=config["r_layers"],
            feature_dim=config["visual_feat_dim"],
            **shared,
        ),
        fusion=dict(form="lxmert", depth=config["x_layers"], **shared),
        answers=config["num_qa_labels"]
        if configs.has(names, "logit_fc.3.weight") and not pair
        else 0,
        labels=configs.count_labels(config) if pair else 0,
        word_head=configs.word_table(config, names),
        matching=configs.has(names, "cls.seq_relationship.weight"),
        region_heads={
            key: size
            for key, size in sizes.items()
            if configs.has(names, f"decoder_dict.{key}.weight")
        },
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of an LXMERT checkpoint, under the prefixes that this one has: `lxmert.`,
    `module.bert.`, `lxrt_encoder.model.bert.` or none."""
    bert = configs.prefix_of(names, "LXMERT")
    # Heads lie beside the backbone, the original's fine-tuned one at the top.
    root = bert.removesuffix("bert.").removesuffix("lxmert.")
    answers = "logit_fc" if "logit_fc.0.weight" in names else f"{root}answer_head.logit_fc"
    words, regions = f"{root}cls.predictions", f"{root}obj_predict_head"
    decoder = configs.decoder_names(
        config, names, f"{words}.decoder", f"{words}.bias", bert + configs.WORD_TABLE
    )
    return Table(
        rules=(
            *under(bert, "text_encoder/", rows.BERT),
            *under(f"{bert}encoder.", "image_encoder/", REGIONS),
            *under(f"{bert}encoder.", "fusion/", FUSION),
            *rows.dense(f"{bert}pooler.dense", "fusion/text_pooler/dense"),
            *rows.classifier(answers, "head"),
            *rows.word_head(f"{words}.transform", f"{words}.decoder.weight", decoder.bias),
            *rows.dense(f"{root}cls.seq_relationship", "matching_head"),
            *rows.dense(f"{regions}.transform.dense", "region_dense"),
            *rows.norm(f"{regions}.transform.LayerNorm", "region_norm"),
            *rows.dense(f"{regions}.decoder_dict.obj", "region_obj"),
            *rows.dense(f"{regions}.decoder_dict.attr", "region_attr"),
            *rows.dense(f"{regions}.decoder_dict.feat", "region_feat"),
        ),
        tied=decoder.tied,
        unused=(rows.POSITION_IDS, *decoder.unused),
    )


def ending(shapes: Mapping[str, Shape], end: str) -> Shape:
    """The shape of the tensor whose name ends so; () without one."""
    return next((shape for name, shape in shapes.items() if name.endswith(end)), ())


def recognize(shapes: Mapping[str, Shape]) -> dict[str, Any] | None:
    """The config of a file without one, if it is LXMERT's.

    Sizes are read from the shapes. What shapes do not show is as published: heads 64 wide, GELU,
    dropout 0.1. A head over twice the width with two classes is that of NLVR2.
    """
    if not configs.has(shapes, "encoder.visn_fc.visn_fc.weight"):
        return None
    bert = configs.prefix_of(shapes, "LXMERT")
    layers = re.escape(f"{bert}encoder.")
    config: dict[str, Any] = dict(
        model_type="lxmert",
        **configs.bert_config(shapes, bert, "LXMERT"),
        l_layers=configs.count(shapes, layers + r"layer\.(\d+)\."),
        x_layers=configs.count(shapes, layers + r"x_layers\.(\d+)\."),
        r_layers=configs.count(shapes, layers + r"r_layers\.(\d+)\."),
        visual_feat_dim=shapes[f"{bert}encoder.visn_fc.visn_fc.weight"][1],
        visual_pos_dim=shapes[f"{bert}encoder.visn_fc.box_fc.weight"][1],
    )
    for key, end in (
        ("num_qa_labels", "logit_fc.3.weight"),
        ("num_object_labels", "decoder_dict.obj.weight"),
        ("num_attr_labels", "decoder_dict.attr.weight"),
    ):
        if shape := ending(shapes, end):
            config[key] = shape[0]
    first = ending(shapes, "logit_fc.0.weight")
    if first and first[1] == 2 * config["hidden_size"]:
        config |= dict(architectures=["NLVR2Model"], num_labels=config.pop("num_qa_labels"))
    return config
