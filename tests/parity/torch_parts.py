"""Originals that transformers lacks, in plain torch: tensors under their own names, and functions.

`original` makes a module of named tensors; a family's file says what is computed of them, from the
layers below, which are those of BERT (post-norm, epsilon 1e-12, -10000 at masked keys).
"""

import json


def original(config, shapes, ties=(), padded=()):
    """A module with these tensors (name -> shape), random; `ties` are (name, the one it repeats).

    `padded` names tables whose row 0 is zero, as an embedding with `padding_idx=0` keeps it.
    """
    import torch

    from tests.pretrained.cases import randomized

    module = torch.nn.Module()
    for name, shape in shapes.items():
        _put(module, name, torch.nn.Parameter(torch.zeros(shape)))
    randomized(module)
    tensors = dict(module.named_parameters())
    for name in padded:
        tensors[name].data[0] = 0.0
    for name, other in ties:
        _put(module, name, tensors[other])
    module.config = config
    return module


def _put(module, name, parameter):
    import torch

    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, torch.nn.Module())
        module = getattr(module, part)
    module.register_parameter(last, parameter)


def save(module, directory):
    """As PyTorch programs do: a state dict, and here its config.json beside it."""
    import torch

    torch.save(module.state_dict(), f"{directory}/pytorch_model.bin")
    with open(f"{directory}/config.json", "w") as file:
        json.dump(module.config, file, indent=1)


def save_half(module, directory):
    """In float16, which keeps the recorded files small; see `cases.save_half`."""
    save(module.half(), directory)
    module.float()


def tensors_of(module):
    """Name -> tensor, a tied one under each of its names."""
    return dict(module.named_parameters(remove_duplicate=False))


def linear_shapes(name, inputs, outputs):
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def layer_shapes(name, width, hidden):
    """A layer of BERT."""
    shapes = {}
    for part in ("query", "key", "value"):
        shapes |= linear_shapes(f"{name}.attention.self.{part}", width, width)
    shapes |= linear_shapes(f"{name}.attention.output.dense", width, width)
    shapes |= norm_shapes(f"{name}.attention.output.LayerNorm", width)
    shapes |= linear_shapes(f"{name}.intermediate.dense", width, hidden)
    shapes |= linear_shapes(f"{name}.output.dense", hidden, width)
    return shapes | norm_shapes(f"{name}.output.LayerNorm", width)


def transform_shapes(name, width):
    return linear_shapes(f"{name}.dense", width, width) | norm_shapes(f"{name}.LayerNorm", width)


def classifier_shapes(name, inputs, hidden, outputs):
    """A Sequential of dense, GELU, norm, dense."""
    shapes = linear_shapes(f"{name}.0", inputs, hidden) | norm_shapes(f"{name}.2", hidden)
    return shapes | linear_shapes(f"{name}.3", hidden, outputs)


def linear(p, name, x):
    import torch

    return torch.nn.functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def norm(p, name, x):
    import torch

    weight, bias = p[f"{name}.weight"], p[f"{name}.bias"]
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, 1e-12)


def activate(name, x):
    import torch

    functions = torch.nn.functional
    return {"gelu": functions.gelu, "relu": functions.relu, "swish": functions.silu}[name](x)


def mask_bias(mask):
    """What is added to logits [b h t s] for a mask [b s]."""
    return (1.0 - mask[:, None, None].float()) * -10000.0


def attend(query, key, value, bias, heads):
    def split(x):
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    query, key, value = split(query), split(key), split(value)
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + bias
    mixed = logits.softmax(-1) @ value
    return mixed.transpose(1, 2).flatten(2)


def feed_forward(p, inner, outer, x, act):
    y = linear(p, f"{outer}.dense", activate(act, linear(p, f"{inner}.dense", x)))
    return norm(p, f"{outer}.LayerNorm", y + x)


def layer(p, name, x, bias, heads, act):
    own = f"{name}.attention"
    q, k, v = (linear(p, f"{own}.self.{part}", x) for part in ("query", "key", "value"))
    y = linear(p, f"{own}.output.dense", attend(q, k, v, bias, heads))
    x = norm(p, f"{own}.output.LayerNorm", y + x)
    return feed_forward(p, f"{name}.intermediate", f"{name}.output", x, act)


def transform(p, name, x, act):
    return norm(p, f"{name}.LayerNorm", activate(act, linear(p, f"{name}.dense", x)))


def classifier(p, name, x):
    x = norm(p, f"{name}.2", activate("gelu", linear(p, f"{name}.0", x)))
    return linear(p, f"{name}.3", x)
