"""UNITER, which transformers lacks, written here from the facts of github.com/ChenRocks/UNITER.

Read there: model/model.py (embeddings, their tensors' names, epsilon 1e-12, -10000 at masked keys,
the type table shared by words and regions, `mask_embedding` with its row 0 kept at zero),
model/layer.py (BERT's layers), model/{vqa,ve,itm,pretrain,nlvr2}.py (heads and their names),
data/data.py (x1 y1 x2 y2 w h, and w h as the seventh number), data/nlvr2.py (image i has type i+1),
train_nlvr2.py (the third row of types). model/attention.py, which is not in the index that was
read, is PyTorch's MultiheadAttention by its copy in jansel/pytorch-jit-paritybench; vocabulary size
28996 is bert-base-cased's. The original gathers used words and regions to the front before the
layers (`gather_index`), which attention does not notice; here they stay where they are.
"""

import numpy as np

from tests.parity import torch_parts as parts
from tests.parity.lxmert import batch as region_batch
from tests.pretrained.cases import Case, torch_batch

SMALL = dict(
    vocab_size=30, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=12, type_vocab_size=2, img_dim=10, num_answer=7, img_label_dim=6,
)  # fmt: skip
BASE_SIZE = dict(
    vocab_size=28996, hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
    intermediate_size=3072, max_position_embeddings=512, type_vocab_size=2, img_dim=2048,
    num_answer=3129, img_label_dim=1601,
)  # fmt: skip


def backbone_shapes(c, types):
    width = c["hidden_size"]
    text, image = "uniter.embeddings", "uniter.img_embeddings"
    shapes = {
        f"{text}.word_embeddings.weight": (c["vocab_size"], width),
        f"{text}.position_embeddings.weight": (c["max_position_embeddings"], width),
        f"{text}.token_type_embeddings.weight": (types, width),
        f"{image}.mask_embedding.weight": (2, c["img_dim"]),
    }
    for name in (f"{text}.LayerNorm", f"{image}.LayerNorm"):
        shapes |= parts.norm_shapes(name, width)
    for name, size in (("img", c["img_dim"]), ("pos", 7)):
        shapes |= parts.linear_shapes(f"{image}.{name}_linear", size, width)
        shapes |= parts.norm_shapes(f"{image}.{name}_layer_norm", width)
    for i in range(c["num_hidden_layers"]):
        shapes |= parts.layer_shapes(f"uniter.encoder.layer.{i}", width, c["intermediate_size"])
    return shapes | parts.linear_shapes("uniter.pooler.dense", width, width)


def head_shapes(c, head):
    width = c["hidden_size"]
    if head == "vqa":
        return parts.classifier_shapes("vqa_output", width, 2 * width, c["num_answer"])
    if head == "itm":
        shapes = parts.linear_shapes("itm_output", width, 2)
        return shapes | parts.linear_shapes("rank_output", width, 1)
    if head in ("paired", "triplet"):
        return parts.linear_shapes("nlvr2_output", width * (2 if head == "paired" else 1), 2)
    if head == "paired-attn":
        shapes = parts.linear_shapes("nlvr2_output", 2 * width, 2)
        shapes |= parts.linear_shapes("fc.0", 2 * width, width)
        shapes |= parts.linear_shapes("attn_pool.fc.0", width, 1)
        for name in ("attn1", "attn2"):
            shapes |= {
                f"{name}.in_proj_weight": (3 * width, width),
                f"{name}.in_proj_bias": (3 * width,),
            } | parts.linear_shapes(f"{name}.out_proj", width, width)
        return shapes
    if head == "pretraining":
        shapes = parts.transform_shapes("cls.predictions.transform", width)
        shapes |= {"cls.predictions.bias": (c["vocab_size"],)}
        shapes |= parts.linear_shapes("feat_regress.net.0", width, width)
        shapes |= parts.norm_shapes("feat_regress.net.2", width)
        shapes |= {"feat_regress.bias": (c["img_dim"],)}
        shapes |= parts.classifier_shapes("region_classifier.net", width, width, c["img_label_dim"])
        return shapes | parts.linear_shapes("itm_output", width, 2)
    return {}


TIES = (
    ("cls.predictions.decoder.weight", "uniter.embeddings.word_embeddings.weight"),
    ("feat_regress.weight", "uniter.img_embeddings.img_linear.weight"),
)


def original(head="", size=SMALL, **changes):
    def make():
        config = {"model_type": "uniter", "hidden_act": "gelu", **size, **changes}
        pair = head in ("paired", "paired-attn", "triplet")
        if head == "triplet":
            config["nlvr2"] = head
        shapes = backbone_shapes(config, config["type_vocab_size"] + pair)
        module = parts.original(
            config,
            shapes | head_shapes(config, head),
            TIES if head == "pretraining" else (),
            padded=("uniter.img_embeddings.mask_embedding.weight",),
        )
        module.head = head
        return module

    return make


def run(p, c, b):
    """The original's encoder -> what enters the layers, and what each gives."""
    import torch

    text, image = "uniter.embeddings", "uniter.img_embeddings"
    types = p[f"{text}.token_type_embeddings.weight"]
    place = torch.arange(b["tokens"].shape[1])
    words = p[f"{text}.word_embeddings.weight"][b["tokens"]] + types[0]
    words = words + p[f"{text}.position_embeddings.weight"][place]
    words = parts.norm(p, f"{text}.LayerNorm", words)
    features, box = b["regions"], b["boxes"]
    if "masked_regions" in b:
        hidden = p[f"{image}.mask_embedding.weight"][1]
        features = features + b["masked_regions"][..., None] * hidden
    size = box[..., 2:] - box[..., :2]
    position = torch.cat([box, size, size[..., :1] * size[..., 1:]], dim=-1)
    x = parts.norm(p, f"{image}.img_layer_norm", parts.linear(p, f"{image}.img_linear", features))
    y = parts.norm(p, f"{image}.pos_layer_norm", parts.linear(p, f"{image}.pos_linear", position))
    kinds = b.get("region_types", torch.zeros(box.shape[:2], dtype=torch.long))
    regions = parts.norm(p, f"{image}.LayerNorm", x + y + types[1 + kinds])
    x = torch.cat([words, regions], dim=1)
    bias = parts.mask_bias(torch.cat([b["text_mask"], b["region_mask"]], dim=1))
    states = [x]
    for i in range(c["num_hidden_layers"]):
        name = f"uniter.encoder.layer.{i}"
        states.append(
            parts.layer(p, name, states[-1], bias, c["num_attention_heads"], c["hidden_act"])
        )
    return words, regions, states


def call(module, batch):
    import torch

    p, c = parts.tensors_of(module), module.config
    b = torch_batch(batch, **{key: key for key in batch})
    if module.head.startswith("paired") and "region_types" not in b:
        rows, regions = b["regions"].shape[:2]
        b["region_types"] = (torch.arange(rows) % 2)[:, None].expand(rows, regions)
    words, regions, states = run(p, c, b)
    x, length = states[-1], b["tokens"].shape[1]
    pooled = torch.tanh(parts.linear(p, "uniter.pooler.dense", x[:, 0]))
    out = {"last_hidden_state": x, "pooler_output": pooled, "states": tuple(states)}
    out |= {"words": (words,), "regions": (regions,)}
    if module.head == "vqa":
        out["logits"] = parts.classifier(p, "vqa_output", pooled)
    elif module.head == "itm":
        out["itm_scores"] = parts.linear(p, "itm_output", pooled)
        out["rank_scores"] = parts.linear(p, "rank_output", pooled)
    elif module.head == "triplet":
        out["logits"] = parts.linear(p, "nlvr2_output", pooled)
    elif module.head == "paired":
        out["logits"] = parts.linear(p, "nlvr2_output", pooled.reshape(len(pooled) // 2, -1))
    elif module.head == "paired-attn":
        out["logits"] = paired_attention(p, c, x, b)
    elif module.head == "pretraining":
        words = parts.transform(p, "cls.predictions.transform", x[:, :length], c["hidden_act"])
        table = p["cls.predictions.decoder.weight"]
        out["prediction_scores"] = words @ table.T + p["cls.predictions.bias"]
        y = parts.activate("gelu", parts.linear(p, "feat_regress.net.0", x[:, length:]))
        y = parts.norm(p, "feat_regress.net.2", y)
        out["prediction_feat"] = y @ p["feat_regress.weight"] + p["feat_regress.bias"]
        regions = parts.classifier(p, "region_classifier.net", x[:, length:])
        out["prediction_soft_label"] = regions
        out["itm_scores"] = parts.linear(p, "itm_output", pooled)
    return out


def paired_attention(p, c, x, b):
    import torch

    functions, mask = torch.nn.functional, torch.cat([b["text_mask"], b["region_mask"]], dim=1)
    sides, unused = (x[::2], x[1::2]), (mask[::2] == 0, mask[1::2] == 0)
    pooled = []
    for i, name in enumerate(("attn1", "attn2")):
        own, other = sides[i].transpose(0, 1), sides[1 - i].transpose(0, 1)
        read, _ = functions.multi_head_attention_forward(
            own, other, other, c["hidden_size"], c["num_attention_heads"],
            p[f"{name}.in_proj_weight"], p[f"{name}.in_proj_bias"], None, None, False, 0.0,
            p[f"{name}.out_proj.weight"], p[f"{name}.out_proj.bias"], training=False,
            key_padding_mask=unused[1 - i],
        )  # fmt: skip
        y = parts.linear(p, "fc.0", torch.cat([read, own], dim=-1)).relu().transpose(0, 1)
        score = parts.linear(p, "attn_pool.fc.0", y).relu()[..., 0] - 1e4 * unused[i].float()
        pooled.append((score.softmax(1)[:, None] @ y)[:, 0])
    return parts.linear(p, "nlvr2_output", torch.cat(pooled, dim=-1))


def batch(rng, rows=2, **sizes):
    made = region_batch(rng, rows=rows, **sizes)
    del made["token_types"]
    made["joint_mask"] = np.concatenate([made["text_mask"], made["region_mask"]], axis=1)
    return made


def with_masked(rng):
    made = batch(rng)
    return made | {"masked_regions": rng.random(made["region_mask"].shape) < 0.5}


def with_types(rng):
    """Both images in one row."""
    made = batch(rng)
    return made | {"region_types": rng.integers(0, 2, made["region_mask"].shape).astype(np.int32)}


def text_only(rng):
    made = batch(rng)
    made["region_mask"][1] = made["joint_mask"][1, 7:] = False
    return made


WHOLE = dict(
    batch=batch,
    call=call,
    save=parts.save,
    hidden={
        "fusion/encoder": "states",
        "text_encoder/encoder": "words",
        "image_encoder/encoder": "regions",
    },
    masks={
        "words": "text_mask",
        "regions": "region_mask",
        "states": "joint_mask",
        "last_hidden_state": "joint_mask",
        "prediction_scores": "text_mask",
        "prediction_feat": "region_mask",
        "prediction_soft_label": "region_mask",
    },
)
PAIRED = WHOLE | dict(batch=lambda rng: batch(rng, rows=4))
CASES = {
    "plain": Case(original(), **WHOLE, gradients=True),
    "answers": Case(original("vqa"), **WHOLE, golden=True),
    "pretraining": Case(
        original("pretraining"), **WHOLE | dict(batch=with_masked), golden=True, gradients=True
    ),
    "retrieval": Case(original("itm"), **WHOLE),
    "paired": Case(original("paired"), **PAIRED),
    "paired attention": Case(original("paired-attn"), **PAIRED, gradients=True),
    "triplet": Case(original("triplet"), **WHOLE | dict(batch=with_types)),
    "absent image": Case(original("vqa"), **WHOLE | dict(batch=text_only)),
    "relu": Case(original("pretraining", hidden_act="relu"), **WHOLE),
}
BASE = {
    "base": Case(
        original("vqa", BASE_SIZE),
        **WHOLE
        | dict(
            batch=lambda rng: batch(rng, vocabulary=28996, length=20, regions=36, features=2048)
        ),
    )
}
