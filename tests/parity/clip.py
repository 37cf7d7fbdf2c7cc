"""CLIP: transformers' CLIPModel and its parts, and OpenAI's layout."""

import pathlib

import numpy as np

from tests.pretrained.cases import Case, randomized, torch_batch

END = 28  # the highest id: OpenAI's rule and transformers' find the same token
SMALL = dict(
    hidden_size=16, num_attention_heads=4, intermediate_size=24, num_hidden_layers=2,
    projection_dim=12,
)  # fmt: skip
TEXT = dict(vocab_size=29, max_position_embeddings=9, eos_token_id=END, bos_token_id=1)
VISION = dict(image_size=16, patch_size=4)


def configuration(text=None, vision=None, **more):
    import transformers

    return transformers.CLIPConfig(
        text_config={**SMALL, **TEXT, "hidden_size": 20, **(text or {})},
        vision_config={**SMALL, **VISION, **(vision or {})},
        projection_dim=12,
        **more,
    )


def pair(text=None, vision=None, head="CLIPModel", **more):
    def make():
        import transformers

        return randomized(getattr(transformers, head)(configuration(text, vision, **more)))

    return make


def side(head, part, **changes):
    def make():
        import transformers

        config = getattr(configuration(**{part: changes}), f"{part}_config")
        return randomized(getattr(transformers, head)(config))

    return make


def texts(rng, rows=2, length=9, end=END):
    """Rows of different lengths, each closed by the end token, which also pads."""
    tokens = rng.integers(1, end, (rows, length)).astype(np.int32)
    mask = np.ones((rows, length), bool)
    for row in range(rows):
        stop = length - 1 - 2 * row
        tokens[row, stop:] = end
        mask[row, stop + 1 :] = False
    return {"tokens": tokens, "text_mask": mask}


def images(rng, rows=2, height=16, width=16):
    return {"image": rng.normal(size=(rows, height, width, 3)).astype(np.float32)}


def both(rng):
    return texts(rng, rows=2) | images(rng, rows=2)


def call(module, batch, **more):
    """Every output of a pair and of its sides."""
    names = {"input_ids": "tokens", "attention_mask": "text_mask", "pixel_values": "image"}
    given = torch_batch(batch, **{k: v for k, v in names.items() if v in batch})
    found = module(**given, output_hidden_states=True, **more)
    out = dict(found.items())
    for name in ("text", "vision"):
        if f"{name}_model_output" in out:
            out[f"{name}_states"] = out.pop(f"{name}_model_output").hidden_states
    return out


def call_resized(module, batch):
    return call(module, batch, interpolate_pos_encoding=True)


PAIR = dict(
    batch=both,
    call=call,
    hidden={"image_encoder/encoder": "vision_states", "text_encoder/encoder": "text_states"},
    masks={"text_states": "text_mask"},
)
TEXT_SIDE = dict(
    batch=texts,
    call=call,
    hidden={"text_encoder/encoder": "hidden_states"},
    masks={"hidden_states": "text_mask", "last_hidden_state": "text_mask"},
)
IMAGE_SIDE = dict(batch=images, call=call, hidden={"image_encoder/encoder": "hidden_states"})


def first_end(rng):
    """An end token that is not the highest id, and comes again as padding."""
    return images(rng) | texts(rng, end=7)


def openai():
    """OpenAI's model, rebuilt with torch's own layers under OpenAI's names."""
    import torch
    from torch import nn

    class Attention(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x, need_weights=False, attn_mask=self.limit)[0]

    class Layer(nn.Module):
        def __init__(self, width, heads, limit):
            super().__init__()
            self.attn = Attention(width, heads, batch_first=True)
            self.attn.limit = limit
            self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.mlp = nn.ModuleDict(
                dict(c_fc=nn.Linear(width, 4 * width), c_proj=nn.Linear(4 * width, width))
            )

        def forward(self, x):
            x = x + self.attn(self.ln_1(x))
            y = self.mlp["c_fc"](self.ln_2(x))
            return x + self.mlp["c_proj"](y * torch.sigmoid(1.702 * y))

    class Layers(nn.Module):
        def __init__(self, width, heads, limit=None):
            super().__init__()
            self.resblocks = nn.ModuleList(Layer(width, heads, limit) for _ in range(2))

        def forward(self, x):
            states = [x]
            for layer in self.resblocks:
                states.append(layer(states[-1]))
            return states

    class Visual(nn.Module):
        def __init__(self, width, heads, out):
            super().__init__()
            self.conv1 = nn.Conv2d(3, width, 4, 4, bias=False)
            self.class_embedding = nn.Parameter(torch.zeros(width))
            self.positional_embedding = nn.Parameter(torch.zeros(17, width))
            self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
            self.transformer = Layers(width, heads)
            self.proj = nn.Parameter(torch.zeros(width, out))

    class Clip(nn.Module):
        def __init__(self, width=20, heads=4, vocabulary=29, length=9, out=12):
            super().__init__()
            self.visual = Visual(16, 4, out)
            limit = torch.full((length, length), -torch.inf).triu(1)
            self.transformer = Layers(width, heads, limit)
            self.token_embedding = nn.Embedding(vocabulary, width)
            self.positional_embedding = nn.Parameter(torch.zeros(length, width))
            self.ln_final = nn.LayerNorm(width)
            self.text_projection = nn.Parameter(torch.zeros(width, out))
            self.logit_scale = nn.Parameter(torch.tensor(1.0))

    return randomized(Clip())


def call_openai(module, batch):
    import torch

    given = torch_batch(batch, tokens="tokens", image="image")
    visual = module.visual
    x = visual.conv1(given["image"]).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], 1)
    image = visual.transformer(visual.ln_pre(x + visual.positional_embedding))
    text = module.transformer(module.token_embedding(given["tokens"]) + module.positional_embedding)
    x = visual.ln_post(image[-1][:, 0]) @ visual.proj
    ends = given["tokens"].argmax(-1)
    y = module.ln_final(text[-1])[torch.arange(len(ends)), ends] @ module.text_projection
    x, y = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    logits = module.logit_scale.exp() * x @ y.T
    return dict(
        image_embeds=x,
        text_embeds=y,
        logits_per_image=logits,
        logits_per_text=logits.T,
        vision_states=image,
        text_states=text,
    )


def openai_configuration():
    return configuration(
        text=dict(num_attention_heads=4, intermediate_size=80, eos_token_id=2),
        vision=dict(intermediate_size=64),
    )


def save_openai(module, directory):
    from safetensors.torch import save_file

    openai_configuration().to_json_file(pathlib.Path(directory) / "config.json")
    save_file(module.state_dict(), pathlib.Path(directory) / "model.safetensors")


CASES = {
    "pair": Case(pair(), **PAIR, golden=True, gradients=True),
    "openai": Case(
        openai, **PAIR | dict(call=call_openai), save=save_openai, golden=True, gradients=True
    ),
    "gelu": Case(pair(dict(hidden_act="gelu"), dict(hidden_act="gelu")), **PAIR),
    "epsilon": Case(pair(dict(layer_norm_eps=1e-3), dict(layer_norm_eps=1e-2)), **PAIR),
    "highest token": Case(pair(dict(eos_token_id=2)), **PAIR),
    "first end token": Case(pair(dict(eos_token_id=7)), **PAIR | dict(batch=first_end)),
    "no mask": Case(
        pair(),
        **PAIR
        | dict(batch=lambda rng: images(rng) | {"tokens": texts(rng)["tokens"]}, masks={}),
    ),
    "more pixels": Case(
        pair(),
        **PAIR | dict(batch=lambda rng: texts(rng) | images(rng, 2, 28, 20), call=call_resized),
    ),
    "fewer pixels": Case(
        pair(),
        **PAIR | dict(batch=lambda rng: texts(rng) | images(rng, 2, 8, 12), call=call_resized),
    ),
    "odd pixels": Case(
        pair(vision=dict(image_size=18)),
        **PAIR | dict(batch=lambda rng: texts(rng) | images(rng, 2, 18, 18)),
    ),
    "text": Case(side("CLIPTextModel", "text"), **TEXT_SIDE),
    "text projected": Case(
        side("CLIPTextModelWithProjection", "text"), **TEXT_SIDE, absent=("pooler_output",)
    ),
    "image": Case(side("CLIPVisionModel", "vision"), **IMAGE_SIDE),
    "image projected": Case(
        side("CLIPVisionModelWithProjection", "vision"), **IMAGE_SIDE, absent=("pooler_output",)
    ),
    "classifier": Case(
        pair(head="CLIPForImageClassification", num_labels=3),
        **IMAGE_SIDE,
        absent=("pooler_output", "last_hidden_state"),
    ),
}  # fmt: skip


def base(rng):
    return texts(rng, length=77, end=49407) | images(rng, height=224, width=224)


def base_original():
    import transformers

    return randomized(transformers.CLIPModel(transformers.CLIPConfig()))


BASE = {"ViT-B/32": Case(base_original, **PAIR | dict(batch=base))}
