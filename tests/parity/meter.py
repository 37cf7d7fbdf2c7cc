"""METER: its model in plain torch, under the names of its own repository (zdou0830/METER).

Checked there, in meter/modules: `meter_module.py` (which parts read what, types, poolers, heads and
their inputs), `clip_model.py` (the image encoder: one layer fewer than CLIP, all tokens through
`ln_post`; torch's own epsilon), `bert_model.py` (a cross layer: self, cross, MLP, each with its
norm; the config's epsilon, by default BERT's 1e-12), `heads.py` (pooler, words), `objectives.py`
(two images: two passes, vectors side by side); and `meter/config.py` (defaults). The text encoder
is transformers' there as here.
"""

import json
import pathlib

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch

SMALL = dict(
    tokenizer="roberta-base", image_size=8, patch_size=4, vocab_size=30, hidden_size=16,
    num_heads=4, mlp_ratio=2, input_image_embed_size=64, input_text_embed_size=24,
    vqav2_label_size=5,
)  # fmt: skip
SMALL_TEXT = dict(
    vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
    max_position_embeddings=14, type_vocab_size=1, layer_norm_eps=1e-5, pad_token_id=1,
)  # fmt: skip
BASE_CONFIG = dict(
    tokenizer="roberta-base", image_size=288, patch_size=16, vocab_size=50265, hidden_size=768,
    num_heads=12, mlp_ratio=4, input_image_embed_size=768, input_text_embed_size=768,
    vqav2_label_size=3129,
)  # fmt: skip


def reference(config, heads, image_layers, top_layers, text_config=None):
    """METER's module; `heads` are names of its `loss_names`."""
    import torch
    import transformers
    from torch import nn

    width, epsilon = config["hidden_size"], config.get("layer_norm_eps", 1e-12)

    class Attention(nn.Module):
        """`self` and `output` of BERT, reading `y` or itself."""

        def __init__(self):
            super().__init__()
            self.self = nn.ModuleDict(
                {k: nn.Linear(width, width) for k in ("query", "key", "value")}
            )
            self.output = nn.ModuleDict(
                {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)}
            )

        def forward(self, x, mask, y=None):
            y = x if y is None else y

            def heads(z):
                return z.view(*z.shape[:2], config["num_heads"], -1).transpose(1, 2)

            query, key, value = (
                heads(part(z)) for part, z in zip(self.self.values(), (x, y, y), strict=True)
            )
            scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + mask
            mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(x.shape)
            return self.output["LayerNorm"](self.output["dense"](mixed) + x)

    class CrossLayer(nn.Module):
        def __init__(self):
            super().__init__()
            wide = width * config["mlp_ratio"]
            self.attention, self.crossattention = Attention(), Attention()
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, wide)})
            self.output = nn.ModuleDict(
                {"dense": nn.Linear(wide, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)}
            )

        def forward(self, x, y, mask, other_mask):
            x = self.crossattention(self.attention(x, mask), other_mask, y)
            z = self.output["dense"](nn.functional.gelu(self.intermediate["dense"](x)))
            return self.output["LayerNorm"](z + x)

    class Block(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.attn = nn.MultiheadAttention(size, size // 64)
            self.ln_1, self.ln_2 = nn.LayerNorm(size), nn.LayerNorm(size)
            self.mlp = nn.ModuleDict(
                {"c_fc": nn.Linear(size, 4 * size), "c_proj": nn.Linear(4 * size, size)}
            )

        def forward(self, x):
            y = self.ln_1(x)
            x = x + self.attn(y, y, y, need_weights=False)[0]
            y = self.mlp["c_fc"](self.ln_2(x))
            return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))

    class Visual(nn.Module):
        def __init__(self, size, patch, side):
            super().__init__()
            self.conv1 = nn.Conv2d(3, size, patch, patch, bias=False)
            self.class_embedding = nn.Parameter(torch.zeros(size))
            self.positional_embedding = nn.Parameter(torch.zeros((side // patch) ** 2 + 1, size))
            self.ln_pre, self.ln_post = nn.LayerNorm(size), nn.LayerNorm(size)
            self.transformer = nn.ModuleDict(
                {"resblocks": nn.ModuleList(Block(size) for _ in range(image_layers - 1))}
            )

        def forward(self, image):
            x = self.conv1(image).flatten(2).permute(0, 2, 1)
            first = self.class_embedding.expand(x.shape[0], 1, -1)
            x = self.ln_pre(torch.cat([first, x], dim=1) + self.positional_embedding)
            states = [x.permute(1, 0, 2)]
            for block in self.transformer["resblocks"]:
                states.append(block(states[-1]))
            states = [y.permute(1, 0, 2) for y in states]
            return self.ln_post(states[-1]), tuple(states)

    class Clip(nn.Module):
        """The image encoder, and what is never read of the text's."""

        def __init__(self):
            super().__init__()
            size, patch = config["input_image_embed_size"], config["patch_size"]
            self.visual = Visual(size, patch, config["image_size"])
            self.positional_embedding = nn.Parameter(torch.zeros(7, 8))
            self.ln_final = nn.LayerNorm(8)

    class Pooler(nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = nn.Linear(width, width)

        def forward(self, x):
            return self.dense(x[:, 0]).tanh()

    def classifier(size, labels):
        hidden = 2 * width
        return nn.Sequential(
            nn.Linear(size, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, labels)
        )

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = nn.ModuleDict(
                {"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width, eps=epsilon)}
            )
            self.decoder = nn.Linear(width, config["vocab_size"], bias=False)
            self.bias = nn.Parameter(torch.zeros(config["vocab_size"]))

        def forward(self, x):
            x = nn.functional.gelu(self.transform["dense"](x))
            return self.decoder(self.transform["LayerNorm"](x)) + self.bias

    class Matching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2 * width, 2)

        def forward(self, x):
            return self.fc(x)

    class Meter(nn.Module):
        def __init__(self):
            super().__init__()
            text, image = config["input_text_embed_size"], config["input_image_embed_size"]
            self.cross_modal_text_transform = nn.Linear(text, width)
            self.cross_modal_image_transform = nn.Linear(image, width)
            self.token_type_embeddings = nn.Embedding(3 if "nlvr2" in heads else 2, width)
            self.vit_model = Clip()
            roberta = "roberta" in config["tokenizer"]
            kind = "Roberta" if roberta else "Bert"
            self.text_transformer = getattr(transformers, f"{kind}Model")(
                getattr(transformers, f"{kind}Config")(**text_config or {})
            )
            self.cross_modal_image_layers = nn.ModuleList(CrossLayer() for _ in range(top_layers))
            self.cross_modal_text_layers = nn.ModuleList(CrossLayer() for _ in range(top_layers))
            self.cross_modal_image_pooler, self.cross_modal_text_pooler = Pooler(), Pooler()
            if "mlm" in heads:
                self.mlm_score = Words()
            if "itm" in heads:
                self.itm_score = Matching()
            if "irtr" in heads:
                self.rank_output = nn.Linear(2 * width, 1)
            for name, size, labels in (
                ("vqa", 2 * width, config["vqav2_label_size"]),
                ("nlvr2", 4 * width, 2),
                ("snli", 2 * width, 3),
            ):
                if name in heads:
                    setattr(self, f"{name}_classifier", classifier(size, labels))

        def infer(self, image, tokens, text_mask, image_type=1):
            encoded = self.text_transformer(
                tokens, attention_mask=text_mask, output_hidden_states=True
            )
            text = self.cross_modal_text_transform(encoded.last_hidden_state)
            image, image_states = self.vit_model.visual(image)
            image = self.cross_modal_image_transform(image)
            types = self.token_type_embeddings.weight
            text, image = text + types[0], image + types[image_type]
            mask = (1.0 - text_mask[:, None, None].float()) * -10000.0
            zero = torch.zeros(())
            cross = [(image, text)]
            for text_layer, image_layer in zip(
                self.cross_modal_text_layers, self.cross_modal_image_layers, strict=True
            ):
                text, image = (
                    text_layer(text, image, mask, zero),
                    image_layer(image, text, zero, mask),
                )
                cross.append((image, text))
            pooled = [self.cross_modal_text_pooler(text), self.cross_modal_image_pooler(image)]
            return {
                "text_features": text,
                "image_features": image,
                "pooler_output": torch.cat(pooled, dim=-1),
                "text_states": encoded.hidden_states,
                "image_states": image_states,
                "cross_image_states": tuple(x for x, _ in cross),
                "cross_text_states": tuple(x for _, x in cross),
            }

        def forward(self, image, tokens, text_mask, second_image=None):
            out = self.infer(image, tokens, text_mask)
            pooled = out["pooler_output"]
            if "nlvr2" in heads:
                second = self.infer(second_image, tokens, text_mask, 2)
                pooled = torch.cat([pooled, second["pooler_output"]], dim=-1)
                states = {name: x for name, x in second.items() if name.endswith("_states")}
                out |= {"pooler_output": pooled} | states
            scores = {}
            if "mlm" in heads:
                scores["word"] = self.mlm_score(out["text_features"])
            if "itm" in heads:
                scores["matching"] = self.itm_score(pooled)
            if "irtr" in heads:
                scores["ranking"] = self.rank_output(pooled)
            for name in ("vqa", "nlvr2", "snli"):
                if name in heads:
                    scores["answer"] = getattr(self, f"{name}_classifier")(pooled)
            if len(scores) == 1:
                return out | {"logits": next(iter(scores.values()))}
            return out | {f"{name}_logits": x for name, x in scores.items()}

    return Meter()


def original(*heads, base=False, text=None, image_layers=3, top_layers=2, **changes):
    def make():
        if base:
            roberta = dict(
                vocab_size=50265,
                max_position_embeddings=514,
                type_vocab_size=1,
                layer_norm_eps=1e-5,
            )
            module = reference(BASE_CONFIG, heads, 12, 6, roberta)
            module.saved_config = BASE_CONFIG
            return randomized(module)
        config = SMALL | changes
        words = SMALL_TEXT | (text or {})
        module = reference(config, heads, image_layers, top_layers, words)
        module.saved_config = config | {"text_config": words}
        return randomized(module)

    return make


def save(module, directory):
    from safetensors.torch import save_file

    path = pathlib.Path(directory)
    save_file(module.state_dict(), path / "model.safetensors", metadata={"format": "pt"})
    config = {"model_type": "meter"} | module.saved_config
    (path / "config.json").write_text(json.dumps(config, indent=2))


def save_half(module, directory):
    """In float16, which keeps the recorded files small; see `cases.save_half`."""
    save(module.half(), directory)
    module.float()


def batch(rng, size=8, vocabulary=30, length=7, second=False):
    """Word 1 is RoBERTa's padding: positions are counted past it."""
    tokens = rng.integers(2, vocabulary, (2, length)).astype(np.int32)
    mask = np.ones((2, length), bool)
    mask[1, length - 2 :] = False
    tokens[~mask] = 1
    found = {
        "image": rng.normal(size=(2, size, size, 3)).astype(np.float32),
        "tokens": tokens,
        "text_mask": mask,
    }
    if second:
        found["second_image"] = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    return found


def call(module, batch):
    return module(**torch_batch(batch, **{name: name for name in batch}))


TEXT = ("text_features", "text_states", "cross_text_states")
WHOLE = dict(
    batch=batch,
    call=call,
    save=save,
    hidden={
        "text_encoder/encoder": "text_states",
        "image_encoder/encoder": "image_states",
        "fusion/encoder": ("cross_image_states", "cross_text_states"),
    },
    masks=dict.fromkeys(TEXT, "text_mask"),
)
WORDS = WHOLE | dict(
    masks=dict.fromkeys((*TEXT, "logits", "word_logits"), "text_mask"), gradients=True
)
# The hidden states compared are those of the second image.
PAIR = WHOLE | dict(batch=lambda rng: batch(rng, second=True))
BERT = dict(type_vocab_size=2, layer_norm_eps=1e-12)
# Most bytes are the image encoder's, which is 64 wide at least: the recorded have one layer of it.
RECORDED = dict(golden=True, gradients=True, save=save_half)
CASES = {
    "plain": Case(original(), **WHOLE, gradients=True),
    "vqa": Case(original("vqa", image_layers=2), **WHOLE | RECORDED),
    "nlvr2": Case(original("nlvr2", image_layers=2), **PAIR | RECORDED),
    "vqa, two layers": Case(original("vqa"), **WHOLE, gradients=True),
    "nlvr2, two layers": Case(original("nlvr2"), **PAIR, gradients=True),
    "snli": Case(original("snli"), **WHOLE),
    "pretrained": Case(original("mlm", "itm"), **WORDS),
    "words": Case(original("mlm"), **WORDS),
    "ranking": Case(original("itm", "irtr"), **WHOLE),
    "bert": Case(original(tokenizer="bert-base-uncased", text=BERT), **WHOLE),
    "two heads of the image": Case(original(input_image_embed_size=128), **WHOLE),
    "one layer each": Case(original(image_layers=2, top_layers=1), **WHOLE),
}
BASE = {
    "base": Case(
        original("vqa", base=True),
        **WHOLE | dict(batch=lambda rng: batch(rng, size=288, vocabulary=50265, length=24)),
    )
}
