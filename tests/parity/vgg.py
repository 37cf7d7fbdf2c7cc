"""VGG as torchvision has it, written here in plain torch: names and layers, nothing else."""

import json

from tests.parity.vit import images
from tests.pretrained.cases import Case, randomized, torch_batch

SMALL = [[4], [6, 8]]
PUBLISHED = [[64] * 2, [128] * 2, [256] * 3, [512] * 3, [512] * 3]


def original(widths=SMALL, batch_norm=False, head=True, hidden=16, labels=5):
    def make():
        from torch import nn

        layers, entering = [], 3
        for stack in widths:
            for width in stack:
                layers.append(nn.Conv2d(entering, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if batch_norm else []
                layers.append(nn.ReLU())
                entering = width
            layers.append(nn.MaxPool2d(2, 2))
        module = nn.Module()
        module.features = nn.Sequential(*layers)
        if head:
            module.classifier = nn.Sequential(
                nn.Linear(entering * 49, hidden), nn.ReLU(), nn.Dropout(),
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(),
                nn.Linear(hidden, labels),
            )  # fmt: skip
        randomized(module)
        for layer in layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.data += 1.0
        module.config = {"model_type": "vgg", "widths": widths}
        if head:
            module.config |= {"hidden_dim": hidden, "num_labels": labels}
        return module

    return make


def call(module, batch):
    from torch.nn import MaxPool2d
    from torch.nn.functional import adaptive_avg_pool2d

    x = torch_batch(batch, image="image")["image"]
    states = [x]
    for layer in module.features:
        x = layer(x)
        states += [x] if isinstance(layer, MaxPool2d) else []
    out = {
        "last_hidden_state": x.flatten(2).transpose(1, 2),
        "hidden_states": tuple(y.permute(0, 2, 3, 1) for y in states),
    }
    if hasattr(module, "classifier"):
        y = adaptive_avg_pool2d(x, (7, 7)).flatten(1)
        out["pooler_output"] = module.classifier[:-1](y)
        out["logits"] = module.classifier[-1](out["pooler_output"])
    return out


def save(module, directory, **config):
    import torch

    torch.save(module.state_dict(), f"{directory}/pytorch_model.bin")
    with open(f"{directory}/config.json", "w") as file:
        json.dump(module.config | config, file, indent=2)


def save_published(module, directory):
    """As the published files are: the format of before torch 1.6, and nothing beside it."""
    import torch

    path = f"{directory}/pytorch_model.bin"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=False)


def save_variant(module, directory):
    save(module, directory, widths=None, variant="16")


def case(make, height=28, width=28, **more):
    fixed = dict(batch=images(height, width), call=call, hidden={"image_encoder": "hidden_states"})
    return Case(make, **fixed | dict(save=save) | more)


CASES = {
    "plain": case(original(), golden=True, gradients=True),
    "batch_norm": case(original(batch_norm=True), golden=True, gradients=True),
    "features alone": case(original(head=False)),
    "no config": case(original(), save=save_published),
    "no config, batch_norm": case(original(batch_norm=True), save=save_published),
    "no config, features alone": case(original(head=False), save=save_published),
    "smaller image": case(original(), 21, 18),
    "larger image": case(original(), 37, 46),
}
BASE = {
    "16": case(original(PUBLISHED, hidden=4096, labels=1000), 224, 224, save=save_variant),
}
