"""ViLBERT, which transformers lacks, written here from facebookresearch/vilbert-multi-task.

Read there in vilbert/vilbert.py (commit afd3d85): embeddings and their names, the order of layers
and connections, BertBiAttention (the text's queries read the image's keys and values, and the other
way round) and BertBiOutput (whose q_dense are never called), poolers with ReLU, fusion_method, task
tokens, the pretraining heads (the image's transform takes the text's activation), VILBertForVLTasks
and SimpleClassifier (GELU, then norm). The five numbers of a region and the whole image as the
first one: vilbert/datasets/_image_features_reader.py; sizes: config/bert_base_6layer_6conect.json.
"""

import numpy as np

from tests.parity import torch_parts as parts
from tests.parity.lxmert import batch as region_batch
from tests.pretrained.cases import Case, torch_batch

SMALL = dict(
    vocab_size=30, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=12, type_vocab_size=2, v_feature_size=10, v_target_size=5,
    v_hidden_size=24, v_num_hidden_layers=2, v_num_attention_heads=3, v_intermediate_size=20,
    bi_hidden_size=32, bi_num_attention_heads=4, v_biattention_id=[0, 1], t_biattention_id=[1, 2],
    num_labels=7, num_gqa_labels=4, num_tasks=3,
)  # fmt: skip
BASE_SIZE = dict(
    vocab_size=30522, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    intermediate_size=3072, max_position_embeddings=512, type_vocab_size=2, v_feature_size=2048,
    v_target_size=1601, v_hidden_size=1024, v_num_hidden_layers=6, v_num_attention_heads=8,
    v_intermediate_size=1024, bi_hidden_size=1024, bi_num_attention_heads=8,
    v_biattention_id=[0, 1, 2, 3, 4, 5], t_biattention_id=[6, 7, 8, 9, 10, 11], num_labels=3129,
    num_gqa_labels=1533, num_tasks=20,
)  # fmt: skip


def shapes_of(c, head, tasks):
    width, other, inner = c["hidden_size"], c["v_hidden_size"], c["bi_hidden_size"]
    shapes = {
        "bert.embeddings.word_embeddings.weight": (c["vocab_size"], width),
        "bert.embeddings.position_embeddings.weight": (c["max_position_embeddings"], width),
        "bert.embeddings.token_type_embeddings.weight": (c["type_vocab_size"], width),
    }
    if tasks:
        shapes["bert.embeddings.task_embeddings.weight"] = (c["num_tasks"], width)
    shapes |= parts.norm_shapes("bert.embeddings.LayerNorm", width)
    features = "bert.v_embeddings.image_embeddings"
    shapes |= parts.linear_shapes(features, c["v_feature_size"], other)
    shapes |= parts.linear_shapes("bert.v_embeddings.image_location_embeddings", 5, other)
    shapes |= parts.norm_shapes("bert.v_embeddings.LayerNorm", other)
    for i in range(c["num_hidden_layers"]):
        shapes |= parts.layer_shapes(f"bert.encoder.layer.{i}", width, c["intermediate_size"])
    for i in range(c["v_num_hidden_layers"]):
        shapes |= parts.layer_shapes(f"bert.encoder.v_layer.{i}", other, c["v_intermediate_size"])
    for i in range(len(c["v_biattention_id"])):
        shapes |= connection_shapes(c, f"bert.encoder.c_layer.{i}")
    shapes |= parts.linear_shapes("bert.t_pooler.dense", width, inner)
    shapes |= parts.linear_shapes("bert.v_pooler.dense", other, inner)
    if head:
        words, regions = "cls.predictions", "cls.imagePredictions"
        shapes |= parts.transform_shapes(f"{words}.transform", width)
        shapes |= {f"{words}.bias": (c["vocab_size"],)}
        shapes |= parts.transform_shapes(f"{regions}.transform", other)
        shapes |= parts.linear_shapes(f"{regions}.decoder", other, c["v_target_size"])
        shapes |= parts.linear_shapes("cls.bi_seq_relationship", inner, 2)
    if head == "tasks":
        for name, inputs, outputs in (
            ("vil_prediction", inner, c["num_labels"]),
            ("vil_prediction_gqa", inner, c["num_gqa_labels"]),
            ("vil_binary_prediction", 2 * inner, 2),
        ):
            shapes |= parts.classifier_shapes(f"{name}.logit_fc", inputs, 2 * inner, outputs)
        shapes |= parts.linear_shapes("vil_logit", inner, 1)
        shapes |= parts.linear_shapes("vil_tri_prediction", inner, 3)
        shapes |= parts.linear_shapes("vision_logit", other, 1)
        shapes |= parts.linear_shapes("linguisic_logit", width, 1)
    return shapes


def connection_shapes(c, name):
    shapes, inner = {}, c["bi_hidden_size"]
    sides = (("1", "v", "v_hidden_size", "v_intermediate_size"),)
    sides += (("2", "t", "hidden_size", "intermediate_size"),)
    for number, letter, width, hidden in sides:
        width, hidden = c[width], c[hidden]
        for part in ("query", "key", "value"):
            shapes |= parts.linear_shapes(f"{name}.biattention.{part}{number}", width, inner)
        shapes |= parts.linear_shapes(f"{name}.biOutput.dense{number}", inner, width)
        shapes |= parts.linear_shapes(f"{name}.biOutput.q_dense{number}", inner, width)
        shapes |= parts.norm_shapes(f"{name}.biOutput.LayerNorm{number}", width)
        shapes |= parts.linear_shapes(f"{name}.{letter}_intermediate.dense", width, hidden)
        shapes |= parts.linear_shapes(f"{name}.{letter}_output.dense", hidden, width)
        shapes |= parts.norm_shapes(f"{name}.{letter}_output.LayerNorm", width)
    return shapes


TIES = (("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),)


def original(head="", tasks=False, size=SMALL, **changes):
    def make():
        acts = {"hidden_act": "gelu", "v_hidden_act": "gelu"}
        config = {"model_type": "vilbert", **acts, **size, **changes}
        module = parts.original(config, shapes_of(config, head, tasks), TIES if head else ())
        module.head, module.tasks = head, tasks
        return module

    return make


def embed(p, b, tasks):
    """Words with their task, and regions, as they enter the layers; and the text's mask."""
    import torch

    text, image = "bert.embeddings", "bert.v_embeddings"
    place = torch.arange(b["tokens"].shape[1])
    words = p[f"{text}.word_embeddings.weight"][b["tokens"]]
    words = words + p[f"{text}.position_embeddings.weight"][place]
    words = words + p[f"{text}.token_type_embeddings.weight"][b["token_types"]]
    mask = b["text_mask"]
    if tasks:
        task = p[f"{text}.task_embeddings.weight"][b["task"]][:, None]
        words = torch.cat([words[:, :1], task, words[:, 1:]], dim=1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)
    box = b["boxes"]
    size = box[..., 2:] - box[..., :2]
    location = torch.cat([box, size[..., 1:] * size[..., :1]], dim=-1)
    regions = parts.linear(p, f"{image}.image_embeddings", b["regions"])
    regions = regions + parts.linear(p, f"{image}.image_location_embeddings", location)
    words = parts.norm(p, f"{text}.LayerNorm", words)
    return words, parts.norm(p, f"{image}.LayerNorm", regions), mask


def connect(p, c, name, image, text, image_bias, text_bias):
    """A connection: both sides by what they were before it."""
    own = {}
    for number, x in (("1", image), ("2", text)):
        for part in ("query", "key", "value"):
            own[part + number] = parts.linear(p, f"{name}.biattention.{part}{number}", x)
    heads = c["bi_num_attention_heads"]
    for_text = parts.attend(own["query2"], own["key1"], own["value1"], image_bias, heads)
    for_image = parts.attend(own["query1"], own["key2"], own["value2"], text_bias, heads)
    image = image + parts.linear(p, f"{name}.biOutput.dense1", for_image)
    text = text + parts.linear(p, f"{name}.biOutput.dense2", for_text)
    image = parts.norm(p, f"{name}.biOutput.LayerNorm1", image)
    text = parts.norm(p, f"{name}.biOutput.LayerNorm2", text)
    v, t = f"{name}.v_", f"{name}.t_"
    return (
        parts.feed_forward(p, f"{v}intermediate", f"{v}output", image, c["v_hidden_act"]),
        parts.feed_forward(p, f"{t}intermediate", f"{t}output", text, c["hidden_act"]),
    )


def run(p, c, b, tasks):
    """Streams after the layers, and their states: a tuple from one connection to the next."""
    text, image, mask = embed(p, b, tasks)
    text_bias, image_bias = parts.mask_bias(mask), parts.mask_bias(b["region_mask"])
    states = {}

    def walk(side, i, x, start, end):
        name, bias = ("v_layer", image_bias) if side == "image" else ("layer", text_bias)
        v = "v_" if side == "image" else ""
        seen = [x]
        for k in range(start, end):
            path, heads = f"bert.encoder.{name}.{k}", c[f"{v}num_attention_heads"]
            seen.append(parts.layer(p, path, seen[-1], bias, heads, c[f"{v}hidden_act"]))
        states[f"{side}_{i}"] = tuple(seen)
        return seen[-1]

    image_at, text_at = 0, 0
    for i, (image_end, text_end) in enumerate(
        zip(c["v_biattention_id"], c["t_biattention_id"], strict=True)
    ):
        text = walk("text", i, text, text_at, text_end)
        image = walk("image", i, image, image_at, image_end)
        name = f"bert.encoder.c_layer.{i}"
        image, text = connect(p, c, name, image, text, image_bias, text_bias)
        image_at, text_at = image_end, text_end
    image = walk("image", i + 1, image, image_at, c["v_num_hidden_layers"])
    text = walk("text", i + 1, text, text_at, c["num_hidden_layers"])
    return image, text, states


def call(module, batch):
    p, c = parts.tensors_of(module), module.config
    b = torch_batch(batch, **{key: key for key in batch})
    image, text, states = run(p, c, b, module.tasks)
    pooled_t = parts.linear(p, "bert.t_pooler.dense", text[:, 0]).relu()
    pooled_v = parts.linear(p, "bert.v_pooler.dense", image[:, 0]).relu()
    summed = c.get("fusion_method", "mul") == "sum"
    pooled = pooled_t + pooled_v if summed else pooled_t * pooled_v
    out = {"sequence_output_t": text, "sequence_output_v": image, "pooled_output": pooled, **states}
    if module.head:
        act = c["hidden_act"]
        words = parts.transform(p, "cls.predictions.transform", text, act)
        table = p["cls.predictions.decoder.weight"]
        out["prediction_scores_t"] = words @ table.T + p["cls.predictions.bias"]
        regions = parts.transform(p, "cls.imagePredictions.transform", image, act)
        out["prediction_scores_v"] = parts.linear(p, "cls.imagePredictions.decoder", regions)
        out["seq_relationship_score"] = parts.linear(p, "cls.bi_seq_relationship", pooled)
    if module.head == "tasks":
        for name in ("vil_prediction", "vil_prediction_gqa"):
            out[name] = parts.classifier(p, f"{name}.logit_fc", pooled)
        pairs = pooled.reshape(-1, 2 * pooled.shape[1])
        name = "vil_binary_prediction"
        out[name] = parts.classifier(p, f"{name}.logit_fc", pairs)
        for name in ("vil_logit", "vil_tri_prediction"):
            out[name] = parts.linear(p, name, pooled)
        hidden = (1.0 - b["region_mask"][..., None].float()) * -10000.0
        out["vision_logit"] = parts.linear(p, "vision_logit", image) + hidden
        out["linguisic_logit"] = parts.linear(p, "linguisic_logit", text)
    return out


def batch(rng, **sizes):
    """The first region is the whole image."""
    made = region_batch(rng, **sizes)
    made["regions"][:, 0] = made["regions"][:, 1:].mean(axis=1)
    made["boxes"][:, 0] = [0, 0, 1, 1]
    made["words_mask"] = made["text_mask"]
    return made


def with_task(rng, **sizes):
    """The task is the second token of a text."""
    made = batch(rng, **sizes)
    mask = made["text_mask"]
    return made | {
        "task": np.array([2, 0], np.int32),
        "words_mask": np.concatenate([mask[:, :1], mask], axis=1),
    }


def states(connections):
    """Paths of the encoders' and of the fusion's stacks, by the original's order."""
    found = {f"{side}_encoder/encoder": f"{side}_0" for side in ("image", "text")}
    for i in range(connections):
        found |= {f"fusion/{side}_{i}": f"{side}_{i + 1}" for side in ("image", "text")}
    return found


TEXTS = ("sequence_output_t", "prediction_scores_t", "linguisic_logit")
IMAGES = ("sequence_output_v", "prediction_scores_v", "vision_logit")


def whole(connections=2, batch=batch):
    return dict(
        batch=batch,
        call=call,
        save=parts.save,
        hidden=states(connections),
        masks={
            **{name: "words_mask" for name in TEXTS},
            **{name: "region_mask" for name in IMAGES},
            **{f"text_{i}": "words_mask" for i in range(connections + 1)},
            **{f"image_{i}": "region_mask" for i in range(connections + 1)},
        },
    )


RECORDED = dict(golden=True, save=parts.save_half)
CASES = {
    "plain": Case(original(), **whole(), gradients=True),
    "pretraining": Case(original("pretraining"), **whole() | RECORDED),
    "tasks": Case(original("tasks", tasks=True), **whole(batch=with_task) | RECORDED),
    "one task": Case(original("tasks"), **whole()),
    "sum": Case(original("pretraining", fusion_method="sum"), **whole()),
    "uneven": Case(
        original(v_biattention_id=[1], t_biattention_id=[0], v_num_hidden_layers=3), **whole(1)
    ),
    "activations": Case(
        original("pretraining", hidden_act="relu", v_hidden_act="swish"), **whole()
    ),
}
BASE = {
    "base": Case(
        original("tasks", tasks=True, size=BASE_SIZE),
        **whole(
            6,
            lambda rng: with_task(rng, vocabulary=30522, length=20, regions=37, features=2048),
        ),
    )
}
