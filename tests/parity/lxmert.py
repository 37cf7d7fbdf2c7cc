"""LXMERT: transformers' LxmertModel and its heads, and the files of the original program.

What airsplay/lxmert adds to transformers was read in its src/lxrt/modeling.py, src/lxrt/entry.py,
src/pretrain/lxmert_pretrain.py (prefixes of what is saved) and src/tasks/{vqa,nlvr2}_model.py (the
heads): the same tensors under other prefixes, and for NLVR2 a head over both pooled vectors.

Where all regions are masked the originals of two streams attend to all of them again (a softmax
over equally low scores), so there is no case of an absent image here, nor in vilbert.py: ours reads
nothing then (tests/models/test_regions.py).
"""

import json

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch

SMALL = dict(
    hidden_size=16, num_attention_heads=2, intermediate_size=32, l_layers=2, x_layers=2, r_layers=2,
    vocab_size=30, max_position_embeddings=12, visual_feat_dim=10, num_qa_labels=7,
    num_object_labels=5, num_attr_labels=4,
)  # fmt: skip


def original(head="LxmertModel", base=False, **changes):
    def make():
        import transformers

        config = transformers.LxmertConfig(**({} if base else SMALL) | changes)
        module = randomized(getattr(transformers, head)(config))
        # Rows that the original never trains would have no gradient to compare.
        embeddings = getattr(module, "lxmert", module).embeddings
        for table in ("word", "position", "token_type"):
            getattr(embeddings, f"{table}_embeddings").padding_idx = None
        return module

    return make


def batch(rng, vocabulary=30, length=7, regions=5, features=10, rows=2):
    text_mask = np.ones((rows, length), bool)
    text_mask[1, length - 2 :] = False
    region_mask = np.ones((rows, regions), bool)
    region_mask[0, regions - 1 :] = False
    corners = np.sort(rng.random((rows, regions, 2, 2)), axis=2)
    return {
        "tokens": rng.integers(1, vocabulary, (rows, length)).astype(np.int32),
        "text_mask": text_mask,
        "token_types": rng.integers(0, 2, (rows, length)).astype(np.int32),
        "regions": rng.normal(size=(rows, regions, features)).astype(np.float32),
        "boxes": corners.reshape(rows, regions, 4).astype(np.float32),
        "region_mask": region_mask,
    }


def base_batch(rng):
    return batch(rng, vocabulary=30522, length=20, regions=36, features=2048)


NAMES = dict(
    input_ids="tokens", attention_mask="text_mask", token_type_ids="token_types",
    visual_feats="regions", visual_pos="boxes", visual_attention_mask="region_mask",
)  # fmt: skip


def call(module, batch):
    """transformers leaves out what enters each encoder; both are put before the layers' states."""
    inputs = torch_batch(batch, **NAMES)
    found = dict(module(**inputs, output_hidden_states=True))
    backbone = getattr(module, "lxmert", module)
    text = found.pop("language_hidden_states")
    image = found.pop("vision_hidden_states")
    words = backbone.embeddings(inputs["input_ids"], inputs["token_type_ids"])
    regions = backbone.encoder.visn_fc(inputs["visual_feats"], inputs["visual_pos"])
    text, image = (words, *text), (regions, *image)
    left, right = backbone.config.l_layers, backbone.config.r_layers
    found |= dict(text=text[: left + 1], cross_text=text[left:])
    found |= dict(image=image[: right + 1], cross_image=image[right:])
    if hasattr(module, "obj_predict_head"):
        found |= module.obj_predict_head(image[-1])
    return found


STATES = dict(
    hidden={
        "text_encoder/encoder": "text",
        "image_encoder/encoder": "image",
        "fusion/encoder": ("cross_image", "cross_text"),
    },
    masks={
        "text": "text_mask",
        "cross_text": "text_mask",
        "language_output": "text_mask",
        "prediction_logits": "text_mask",
        "image": "region_mask",
        "cross_image": "region_mask",
        "vision_output": "region_mask",
        "obj": "region_mask",
        "attr": "region_mask",
        "feat": "region_mask",
    },
)
BACKBONE = ("language_output", "vision_output", "pooled_output")
WHOLE = dict(batch=batch, call=call, **STATES)
HEADS = WHOLE | dict(absent=BACKBONE)


def save_as(rename, **config):
    """A file of the original program: other names, and a config.json beside them."""

    def save(module, directory):
        import torch

        state = {rename(name): x for name, x in module.state_dict().items()}
        torch.save(state, f"{directory}/pytorch_model.bin")
        saved = module.config.to_dict() | config
        with open(f"{directory}/config.json", "w") as file:
            json.dump(saved, file)

    return save


def pretrained_name(name):
    """As src/pretrain saves a model that ran on several devices."""
    return "module." + name.replace("lxmert.", "bert.", 1)


def tuned_name(name):
    """As src/tasks saves a fine-tuned one."""
    if name.startswith("answer_head."):
        return name.removeprefix("answer_head.")
    return "lxrt_encoder.model." + name.replace("lxmert.", "bert.", 1)


def nlvr2(base=False):
    """The original's NLVR2Model: the pooled vectors of two images, and LXMERT's answer head."""

    def make():
        import torch

        module = original("LxmertForQuestionAnswering")()
        width = module.config.hidden_size
        module.answer_head.logit_fc[0] = torch.nn.Linear(2 * width, 2 * width)
        module.answer_head.logit_fc[3] = torch.nn.Linear(2 * width, 2)
        return randomized(module, seed=1)

    return make


def call_pairs(module, batch):
    found = dict(module.lxmert(**torch_batch(batch, **NAMES)))
    pooled = found["pooled_output"]
    return {"logits": module.answer_head(pooled.reshape(-1, 2 * pooled.shape[-1]))}


CASES = {
    "plain": Case(original(), **WHOLE, golden=True, gradients=True),
    "pretraining": Case(original("LxmertForPreTraining"), **HEADS, golden=True),
    "answers": Case(original("LxmertForQuestionAnswering"), **HEADS),
    "untied": Case(original("LxmertForPreTraining", tie_word_embeddings=False), **HEADS),
    "no objects": Case(original("LxmertForPreTraining", task_obj_predict=False), **HEADS),
    "no answers": Case(
        original("LxmertForPreTraining", task_qa=False, visual_attr_loss=False), **HEADS
    ),
    "no image layers": Case(original(r_layers=0), **WHOLE),
    "gelu_new": Case(original("LxmertForQuestionAnswering", hidden_act="gelu_new"), **HEADS),
    "original pretraining": Case(
        original("LxmertForPreTraining"), **HEADS, save=save_as(pretrained_name)
    ),
    "original answers": Case(
        original("LxmertForQuestionAnswering"), **HEADS, save=save_as(tuned_name)
    ),
    "original nlvr2": Case(
        nlvr2(),
        batch=lambda rng: batch(rng, rows=4),
        call=call_pairs,
        absent=BACKBONE,
        save=save_as(tuned_name, architectures=["NLVR2Model"], num_labels=2),
    ),
}
BASE = {"base": Case(original("LxmertForPreTraining", base=True), **HEADS | dict(batch=base_batch))}
