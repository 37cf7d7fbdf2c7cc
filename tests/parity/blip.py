"""BLIP: transformers' BlipModel, and the models that match, answer and write captions."""

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="BlipModel", base=False, text=(), image=(), **changes):
    def make():
        import transformers

        small_text = dict(
            hidden_size=16, num_attention_heads=4, intermediate_size=32, num_hidden_layers=2,
            vocab_size=30, max_position_embeddings=12, bos_token_id=28, sep_token_id=27,
            eos_token_id=2,
        )  # fmt: skip
        small_image = dict(
            hidden_size=24, num_attention_heads=2, intermediate_size=32, num_hidden_layers=2,
            image_size=8, patch_size=4,
        )  # fmt: skip
        small = dict(projection_dim=8, image_text_hidden_size=6)
        config = transformers.BlipConfig(
            text_config=({} if base else small_text) | dict(text),
            vision_config=({} if base else small_image) | dict(image),
            **({} if base else small) | changes,
        )
        return randomized(getattr(transformers, head)(config))

    return make


def batch(rng, size=(8, 8), vocabulary=27, length=7, target=5, padded=True):
    def words(length, padded=True):
        mask = np.ones((2, length), bool)
        mask[1, length - 2 :] = not padded
        tokens = rng.integers(1, vocabulary, (2, length)).astype(np.int32)
        tokens[~mask] = 0
        return tokens, mask

    (tokens, mask), (written, used) = words(length, padded), words(target)
    return {
        "image": rng.normal(size=(2, *size, 3)).astype(np.float32),
        "tokens": tokens,
        "text_mask": mask,
        "target": written,
        "target_mask": used,
    }


class Recorded:
    """Whatever parts of a module gave and were given while it ran: hidden states and outputs."""

    def __init__(self, module):
        self.found, self.hooks = {}, []
        for name, part in (
            ("image_states", module.vision_model.encoder.layers),
            ("text_states", text_model(module) and text_model(module).encoder.layer),
            ("decoder_states", written(module) and written(module).bert.encoder.layer),
        ):
            for i, layer in enumerate(part or ()):
                self.hooks.append(
                    layer.register_forward_hook(self.layer(name, i), with_kwargs=True)
                )
        if written(module):
            keep = lambda *all: self.found.__setitem__("logits", all[-1].logits)  # noqa: E731
            self.hooks.append(written(module).register_forward_hook(keep))
            if text_model(module):
                hook = lambda *all: self.found.__setitem__("question_embeds", all[-1][0])  # noqa: E731
                self.hooks.append(text_model(module).register_forward_hook(hook))

    def layer(self, name, i):
        def hook(_, inputs, keywords, output):
            entered = inputs[0] if inputs else keywords["hidden_states"]
            output = output[0] if isinstance(output, tuple) else output
            kept = self.found.setdefault(name, {})
            kept |= {0: entered, 1: output} if i == 0 else {i + 1: output}

        return hook

    def close(self):
        for hook in self.hooks:
            hook.remove()
        return {
            name: tuple(x[i] for i in sorted(x)) if isinstance(x, dict) else x
            for name, x in self.found.items()
        }


def text_model(module):
    return getattr(module, "text_model", None) or getattr(module, "text_encoder", None)


def written(module):
    return getattr(module, "text_decoder", None)


def call(module, batch):
    name = type(module).__name__
    writes = name == "BlipForConditionalGeneration"
    names = dict(pixel_values="image")
    names |= dict(
        input_ids="target" if writes else "tokens",
        attention_mask="target_mask" if writes else "text_mask",
    )
    if name == "BlipForQuestionAnswering":
        names |= dict(decoder_input_ids="target", decoder_attention_mask="target_mask")
    inputs = torch_batch(batch, **names) | {"interpolate_pos_encoding": True}
    more = {}
    if name == "BlipModel":
        # First, so that the states kept are those of the last pass, as ours are.
        more["multimodal_embeds"] = module.get_multimodal_features(**inputs)
    if name == "BlipForImageTextRetrieval":
        more["similarity"] = module(**inputs, use_itm_head=False).itm_score
    kept = Recorded(module)
    found = dict(module(**inputs))
    states = kept.close()
    if name == "BlipModel":
        more["last_hidden_state"] = found["vision_model_output"].last_hidden_state
        kept = Recorded(module)
        module.get_multimodal_features(**inputs)
        states = kept.close()
    return {k: v for k, v in found.items() if hasattr(v, "shape")} | more | states


IMAGE, TEXT, WRITTEN = (
    {"image_encoder/encoder": "image_states"},
    {"text_encoder/encoder": "text_states"},
    {"decoder": "decoder_states"},
)
MASKS = dict.fromkeys(("text_states", "question_embeds"), "text_mask")
PAIR = dict(batch=batch, call=call, hidden=IMAGE | TEXT, masks=MASKS)
CAPTION = dict(
    batch=batch,
    call=call,
    hidden=IMAGE | WRITTEN,
    masks=dict.fromkeys(("logits", "decoder_states"), "target_mask"),
)
# transformers loses the question's mask on its way to the decoder: no question is padded here.
ANSWER = dict(
    batch=lambda rng: batch(rng, padded=False),
    call=call,
    hidden=IMAGE | TEXT | WRITTEN,
    masks=MASKS | CAPTION["masks"],
)
MATCH = "BlipForImageTextRetrieval"
QUESTION = "BlipForQuestionAnswering"
WRITE = "BlipForConditionalGeneration"


def sized(*size):
    return dict(batch=lambda rng: batch(rng, size))


# transformers makes the decoder that reads the question as if it read the image.
ALIKE = dict(hidden_size=16)
CASES = {
    "pair": Case(original(), **PAIR, golden=True, gradients=True),
    "matching": Case(original(MATCH), **PAIR, gradients=True),
    "answer": Case(original(QUESTION, image=ALIKE), **ANSWER, golden=True, gradients=True),
    "caption": Case(original(WRITE), **CAPTION, golden=True, gradients=True),
    "caption untied": Case(
        original(WRITE, tie_word_embeddings=False, text=dict(tie_word_embeddings=False)), **CAPTION
    ),
    "epsilons": Case(
        original(WRITE, text=dict(layer_norm_eps=1e-3), image=dict(layer_norm_eps=1e-2)), **CAPTION
    ),
    "activations": Case(
        original(
            QUESTION,
            text=dict(hidden_act="gelu_new"),
            image=dict(hidden_act="quick_gelu", **ALIKE),
        ),
        **ANSWER,
    ),
    "another image size": Case(original(WRITE), **CAPTION | sized(12, 12)),
    "a rectangle": Case(original(), **PAIR | sized(16, 8)),
}
BASE = {
    "base": Case(
        original(
            QUESTION,
            base=True,
            text=dict(num_attention_heads=12),
            image=dict(image_size=384, layer_norm_eps=1e-5),
        ),
        **ANSWER | dict(batch=lambda rng: batch(rng, (384, 384), 30522, 16, padded=False)),
    )
}
