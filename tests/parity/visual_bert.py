"""VisualBERT: transformers' VisualBertModel and its heads.

Left out: `image_text_alignment` (regions at the positions of words), other types of regions than 1,
region-to-phrase alignment, and `bypass_transformer`, which transformers 5.23 fails to run.
"""

import numpy as np

from tests.parity.lxmert import batch as region_batch
from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="VisualBertModel", base=False, **changes):
    def make():
        import transformers

        small = dict(
            hidden_size=16, num_attention_heads=2, intermediate_size=32, num_hidden_layers=2,
            vocab_size=30, max_position_embeddings=12, visual_embedding_dim=10,
        )  # fmt: skip
        config = transformers.VisualBertConfig(**({} if base else small) | changes)
        return randomized(getattr(transformers, head)(config))

    return make


def batch(rng, **sizes):
    """Word 1 is the padding of its config, whose row has no gradient in PyTorch."""
    made = region_batch(rng, **sizes)
    del made["boxes"]
    made["tokens"] = np.maximum(made["tokens"], 2)
    made["joint_mask"] = np.concatenate([made["text_mask"], made["region_mask"]], axis=1)
    return made


def text_only(rng):
    made = batch(rng)
    made["region_mask"][1] = made["joint_mask"][1, 7:] = False
    return made


NAMES = dict(
    input_ids="tokens", attention_mask="text_mask", token_type_ids="token_types",
    visual_embeds="regions", visual_attention_mask="region_mask",
)  # fmt: skip


def call(module, batch):
    return module(**torch_batch(batch, **NAMES), output_hidden_states=True)


def call_choices(module, batch):
    """Each row is a choice; transformers has them on a second axis."""
    inputs = {name: x[:, None] for name, x in torch_batch(batch, **NAMES).items()}
    return module(**inputs, output_hidden_states=True)


WHOLE = dict(
    batch=batch,
    call=call,
    hidden={"fusion/encoder": "hidden_states"},
    masks={
        "hidden_states": "joint_mask",
        "last_hidden_state": "joint_mask",
        "prediction_logits": "joint_mask",
    },
)
HEADS = WHOLE | dict(absent=("last_hidden_state", "pooler_output"))
CASES = {
    "plain": Case(original(), **WHOLE, gradients=True),
    "pretraining": Case(original("VisualBertForPreTraining"), **HEADS, golden=True),
    "answers": Case(original("VisualBertForQuestionAnswering", num_labels=7), **HEADS, golden=True),
    "reasoning": Case(original("VisualBertForVisualReasoning"), **HEADS),
    "choices": Case(original("VisualBertForMultipleChoice"), **HEADS | dict(call=call_choices)),
    "absent image": Case(original(), **WHOLE | dict(batch=text_only)),
    "untied": Case(original("VisualBertForPreTraining", tie_word_embeddings=False), **HEADS),
    "epsilon": Case(original(layer_norm_eps=1e-5), **WHOLE),
    "gelu_new": Case(original("VisualBertForPreTraining", hidden_act="gelu_new"), **HEADS),
    "three types": Case(original(type_vocab_size=3), **WHOLE),
}
BASE = {
    "base": Case(
        original("VisualBertForPreTraining", base=True, visual_embedding_dim=2048),
        **HEADS
        | dict(
            batch=lambda rng: batch(rng, vocabulary=30522, length=20, regions=36, features=2048)
        ),
    )
}
