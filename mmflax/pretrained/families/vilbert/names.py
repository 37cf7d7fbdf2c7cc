"""Names of ViLBERT's checkpoints, as github.com/facebookresearch/vilbert-multi-task saves them.

The original's config (`config/bert_base_6layer_6conect.json`) stands beside the weights as
config.json, with `"model_type": "vilbert"`. What its program sets elsewhere may be added:
`fusion_method` ("mul" or "sum"), `num_tasks` (20), `num_labels` (3129) and `num_gqa_labels` (1533).
"""

import itertools
from collections.abc import Collection, Mapping
from typing import Any

from mmflax.errors import MmflaxError
from mmflax.pretrained.families import configs, rows
from mmflax.pretrained.families.config_keys import (
    ACTIVATION,
    COUNT,
    COUNTS,
    FLAG,
    RATE,
    SIZE,
    Key,
    Keys,
    one_of,
)
from mmflax.pretrained.rules import Rule, Table, under

MODEL_TYPES = ("vilbert",)

# With the defaults of the original's BertConfig.
KEYS = {
    "vilbert": Keys(
        used={key: configs.BERT_USED[key] for key in configs.BERT_USED if key != "layer_norm_eps"}
        | dict(
            v_hidden_size=Key(SIZE, 768),
            v_num_hidden_layers=Key(SIZE, 3),
            v_num_attention_heads=Key(SIZE, 12),
            v_intermediate_size=Key(SIZE, 3072),
            v_hidden_act=Key(ACTIVATION, "gelu"),
            v_attention_probs_dropout_prob=Key(RATE, 0.1),
            v_feature_size=Key(SIZE, 2048),
            v_target_size=Key(SIZE, 1601),
            v_biattention_id=Key(COUNTS, (0, 1)),
            t_biattention_id=Key(COUNTS, (10, 11)),
            bi_hidden_size=Key(SIZE, 1024),
            bi_num_attention_heads=Key(SIZE, 16),
            fusion_method=Key(one_of("mul", "sum"), "mul"),
            num_tasks=Key(COUNT, 20),
            num_labels=Key(SIZE, 3129),
            num_gqa_labels=Key(SIZE, 1533),
            task_specific_tokens=Key(FLAG, None),
        ),
        # Options of the program that change the architecture, and what is read here.
        fixed=dict(
            dynamic_attention=(False,),
            in_batch_pairs=(False,),
            layer_norm_eps=(1e-12,),
            model=("bert",),
            with_coattention=(True,),
        ),
        # How it trains, calls that answer faster, and what its forward pass never reads.
        harmless=(
            "bi_attention_type", "bi_intermediate_size", "fast_mode", "fixed_t_layer",
            "fixed_v_layer", "intra_gate", "num_negative", "objective", "pooling_method",
            "predict_feature", "v_hidden_dropout_prob", "v_initializer_range", "visual_target",
            "visualization",
        ),
    )
}  # fmt: skip
REGIONS = (
    *rows.dense("image_embeddings", "feature_projection"),
    *rows.dense("image_location_embeddings", "box_projection"),
    *rows.norm("LayerNorm", "norm"),
)


def segments(config: Mapping[str, Any], stream: str) -> list[range]:
    """Layers of a stream ("t" or "v"): before the first connection, then after each."""
    last = config["num_hidden_layers" if stream == "t" else "v_num_hidden_layers"]
    ends = [0, *config[f"{stream}_biattention_id"], last]
    return [range(start, end) for start, end in itertools.pairwise(ends)]


def fields(config: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    tasks = configs.has(names, "task_embeddings.weight")
    if config["task_specific_tokens"] not in (None, tasks):
        raise MmflaxError(
            f"the config has task_specific_tokens {str(not tasks).lower()}, but the file has "
            f"{'an' if tasks else 'no'} embedding of tasks; expected {str(tasks).lower()}."
        )
    text = configs.bert_fields({**config, "layer_norm_eps": 1e-12})
    text_depths, image_depths = ([len(x) for x in segments(config, s)] for s in ("t", "v"))
    image_heads, image_mlp = config["v_num_attention_heads"], config["v_intermediate_size"]
    image_act = configs.activation(config["v_hidden_act"])
    return dict(
        name="vilbert",
        text_encoder=text | dict(depth=text_depths[0]),
        image_encoder=dict(
            form="vilbert",
            width=config["v_hidden_size"],
            depth=image_depths[0],
            num_heads=image_heads,
            mlp_dim=image_mlp,
            feature_dim=config["v_feature_size"],
            activation=image_act,
            dropout_rate=text["dropout_rate"],
            attention_dropout_rate=config["v_attention_probs_dropout_prob"],
        ),
        fusion=dict(
            depth=len(config["t_biattention_id"]),
            text_depths=text_depths[1:],
            image_depths=image_depths[1:],
            image_width=config["v_hidden_size"],
            image_heads=image_heads,
            image_mlp_dim=image_mlp,
            image_activation=image_act,
            inner_width=config["bi_hidden_size"],
            inner_heads=config["bi_num_attention_heads"],
            pool=config["fusion_method"],
            **configs.layer_fields(text),
        ),
        tasks=config["num_tasks"] if tasks else 0,
        pretraining=configs.has(names, "cls.predictions.bias"),
        region_labels=config["v_target_size"],
        answers=config["num_labels"] if configs.has(names, "vil_logit.weight") else 0,
        gqa_answers=config["num_gqa_labels"],
    )


def layers(config: Mapping[str, Any], stream: str, theirs: str, name: str) -> rows.Rows:
    """Self-attention layers of a stream, in the encoder `name` and in the fusion's stacks."""
    table_rows: list[Rule] = []
    for i, segment in enumerate(segments(config, stream)):
        ours = f"fusion/{name}_{i - 1}" if i else f"{name}_encoder/encoder"
        for k in segment:
            table_rows += rows.bert_layer(f"{theirs}.{k}", f"{ours}/layers_{k - segment.start}/")
    return tuple(table_rows)


def connection(own: int, other: int, letter: str, ours: str) -> rows.Rows:
    """One stream's side of a connection: its own queries, the other's keys and values."""
    theirs = "c_layer.{i}"
    names = f"{theirs}.biattention"
    return (
        *rows.attention(
            f"{names}.query{own}",
            f"{names}.key{other}",
            f"{names}.value{other}",
            f"{theirs}.biOutput.dense{own}",
            f"{ours}cross_attention",
        ),
        *rows.norm(f"{theirs}.biOutput.LayerNorm{own}", f"{ours}cross_attention_norm"),
        *rows.bert_mlp(f"{theirs}.{letter}_intermediate", f"{theirs}.{letter}_output", ours),
    )


def table(config: Mapping[str, Any], names: Collection[str]) -> Table:
    """Every row of a ViLBERT checkpoint, with the prefix that this one has."""
    bert = configs.prefix_of(names, "ViLBERT")
    root = bert.removesuffix("bert.")
    words, regions = f"{root}cls.predictions", f"{root}cls.imagePredictions"
    decoder = (f"{regions}.decoder.weight", f"{regions}.decoder.bias")
    encoder = f"{bert}encoder."
    return Table(
        rules=(
            *under(bert, "text_encoder/", rows.BERT_EMBEDDINGS),
            Rule(f"{bert}embeddings.task_embeddings.weight", "task_embedding/embedding"),
            *under(f"{bert}v_embeddings.", "image_encoder/", REGIONS),
            *under(encoder, "", layers(config, "t", "layer", "text")),
            *under(encoder, "", layers(config, "v", "v_layer", "image")),
            *under(encoder, "fusion/", connection(1, 2, "v", "connection_{i}/image/")),
            *under(encoder, "fusion/", connection(2, 1, "t", "connection_{i}/text/")),
            *rows.dense(f"{bert}t_pooler.dense", "fusion/text_pooler/dense"),
            *rows.dense(f"{bert}v_pooler.dense", "fusion/image_pooler/dense"),
            *rows.word_head(f"{words}.transform", f"{words}.decoder.weight", f"{words}.bias"),
            *rows.word_head(f"{regions}.transform", *decoder, "region_head"),
            *rows.dense(f"{root}cls.bi_seq_relationship", "matching_head"),
            *rows.classifier(f"{root}vil_prediction.logit_fc", "head"),
            *rows.classifier(f"{root}vil_prediction_gqa.logit_fc", "gqa_head"),
            *rows.classifier(f"{root}vil_binary_prediction.logit_fc", "pair_head"),
            *rows.dense(f"{root}vil_logit", "ranking_head"),
            *rows.dense(f"{root}vil_tri_prediction", "entailment_head"),
            *rows.dense(f"{root}vision_logit", "region_choice"),
            *rows.dense(f"{root}linguisic_logit", "word_choice"),
        ),
        tied=((f"{words}.decoder.weight", bert + configs.WORD_TABLE),),
        # Made by the original, and never read by it.
        unused=(r"biOutput\.q_dense[12]\.",),
    )
