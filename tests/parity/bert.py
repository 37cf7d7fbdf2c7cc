"""BERT: transformers' BertModel and its heads."""

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="BertModel", base=False, **changes):
    def make():
        import transformers

        small = dict(
            hidden_size=16, num_attention_heads=4, intermediate_size=32, num_hidden_layers=2,
            vocab_size=30, max_position_embeddings=12,
        )  # fmt: skip
        config = transformers.BertConfig(**({} if base else small) | changes)
        return randomized(getattr(transformers, head)(config))

    return make


def batch(rng, vocabulary=30, length=7):
    mask = np.ones((2, length), bool)
    mask[1, length - 2 :] = False
    return {
        "tokens": rng.integers(1, vocabulary, (2, length)).astype(np.int32),
        "text_mask": mask,
        "token_types": rng.integers(0, 2, (2, length)).astype(np.int32),
    }


def call(module, batch):
    names = dict(input_ids="tokens", attention_mask="text_mask", token_type_ids="token_types")
    return module(**torch_batch(batch, **names), output_hidden_states=True)


WHOLE = dict(
    batch=batch,
    call=call,
    hidden={"text_encoder/encoder": "hidden_states"},
    masks={"last_hidden_state": "text_mask", "hidden_states": "text_mask", "logits": "text_mask"},
)
POOLED = WHOLE | dict(
    masks={"hidden_states": "text_mask"}, absent=("last_hidden_state", "pooler_output")
)
WORDS = WHOLE | dict(absent=("last_hidden_state",))
CASES = {
    "plain": Case(original(), **WHOLE, golden=True, gradients=True),
    "words": Case(original("BertForMaskedLM"), **WORDS, golden=True, gradients=True),
    "classifier": Case(original("BertForSequenceClassification", num_labels=3), **POOLED),
    "gelu_new": Case(original(hidden_act="gelu_new"), **WHOLE),
    "epsilon": Case(original(layer_norm_eps=1e-5), **WHOLE),
    "causal": Case(original("BertLMHeadModel", is_decoder=True), **WORDS),
    "causal encoder": Case(original(is_decoder=True), **WHOLE),
    "own table of words": Case(original("BertForMaskedLM", tie_word_embeddings=False), **WORDS),
    "one type": Case(
        original(type_vocab_size=1),
        **WHOLE | dict(batch=lambda rng: batch(rng) | {"token_types": np.zeros((2, 7), np.int32)}),
    ),
}
BASE = {
    "base": Case(
        original(base=True),
        **WHOLE | dict(batch=lambda rng: batch(rng, vocabulary=30522, length=24)),
    )
}
