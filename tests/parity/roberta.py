"""RoBERTa and XLM-RoBERTa: transformers' RobertaModel and its heads."""

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="RobertaModel", base=False, config="RobertaConfig", pooled=None, **changes):
    def make():
        import transformers

        small = dict(
            hidden_size=16, num_attention_heads=4, intermediate_size=32, num_hidden_layers=2,
            vocab_size=30, max_position_embeddings=12, type_vocab_size=1, layer_norm_eps=1e-5,
        )  # fmt: skip
        published = dict(
            vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
        )
        options = getattr(transformers, config)(**(published if base else small) | changes)
        more = {} if pooled is None else {"add_pooling_layer": pooled}
        return randomized(getattr(transformers, head)(options, **more))

    return make


def batch(rng, vocabulary=30, length=7):
    """Ids from 2 on: 1 is padding's, which the original leaves out when it counts positions."""
    mask = np.ones((2, length), bool)
    mask[1, length - 2 :] = False
    tokens = rng.integers(2, vocabulary, (2, length)).astype(np.int32)
    return {"tokens": np.where(mask, tokens, 1).astype(np.int32), "text_mask": mask}


def padded_inside(rng):
    """A text that contains padding's own token, and one with the padding before it."""
    found = batch(rng)
    found["tokens"][0, 3] = 1
    return {name: np.stack([x[0], x[1, ::-1]]) for name, x in found.items()}


def call(module, batch):
    names = dict(input_ids="tokens", attention_mask="text_mask")
    return module(**torch_batch(batch, **names), output_hidden_states=True)


def words_and_pooler(module, directory):
    """As the published roberta-base: a file of the word head that holds the pooler, too."""
    import safetensors.torch
    import torch

    module.save_pretrained(directory)
    path = f"{directory}/model.safetensors"
    tensors = safetensors.torch.load_file(path)
    width = module.config.hidden_size
    tensors["roberta.pooler.dense.weight"] = torch.ones(width, width)
    tensors["roberta.pooler.dense.bias"] = torch.ones(width)
    tensors["roberta.embeddings.position_ids"] = torch.arange(12)[None]
    tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


WHOLE = dict(
    batch=batch,
    call=call,
    hidden={"text_encoder/encoder": "hidden_states"},
    masks={"last_hidden_state": "text_mask", "hidden_states": "text_mask", "logits": "text_mask"},
)
POOLED = WHOLE | dict(masks={"hidden_states": "text_mask"}, absent=("last_hidden_state",))
WORDS = WHOLE | dict(absent=("last_hidden_state", "pooler_output"))
CASES = {
    "plain": Case(original(), **WHOLE, golden=True, gradients=True),
    "words": Case(original("RobertaForMaskedLM"), **WORDS, golden=True, gradients=True),
    "words of quick_gelu": Case(original("RobertaForMaskedLM", hidden_act="quick_gelu"), **WORDS),
    "words and pooler": Case(original("RobertaForMaskedLM"), **WORDS, save=words_and_pooler),
    "classifier": Case(
        original("RobertaForSequenceClassification", num_labels=3), **POOLED, gradients=True
    ),
    "token classifier": Case(original("RobertaForTokenClassification", num_labels=3), **WORDS),
    "no pooler": Case(original(pooled=False), **WHOLE),
    "xlm": Case(original("XLMRobertaModel", config="XLMRobertaConfig"), **WHOLE),
    "xlm words": Case(original("XLMRobertaForMaskedLM", config="XLMRobertaConfig"), **WORDS),
    "two types": Case(original(type_vocab_size=2), **WHOLE),
    "epsilon": Case(original(layer_norm_eps=1e-12), **WHOLE),
    "causal": Case(original("RobertaForCausalLM", is_decoder=True), **WORDS),
    "own table of words": Case(original("RobertaForMaskedLM", tie_word_embeddings=False), **WORDS),
    "padding inside": Case(
        original(), **WHOLE | dict(batch=padded_inside, absent=("pooler_output",))
    ),
    "padding 0": Case(original(pad_token_id=0), **WHOLE),
}
BASE = {
    "base": Case(
        original(base=True),
        **WHOLE | dict(batch=lambda rng: batch(rng, vocabulary=50265, length=24)),
    )
}
