"""Swin: transformers' SwinModel and SwinForImageClassification."""

import functools

from tests.parity.vit import images
from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="SwinModel", base=False, model=(), **changes):
    def make():
        import transformers

        small = dict(
            embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=2, image_size=16, patch_size=4
        )
        config = transformers.SwinConfig(**({} if base else small) | changes)
        return randomized(getattr(transformers, head)(config, **dict(model)))

    return make


def call(module, batch):
    """What enters a stage and what each of its blocks gives: theirs shows the stages only."""
    found, hooks = {}, []
    stages = [part for part in module.modules() if type(part).__name__ == "SwinStage"]
    for i, stage in enumerate(stages):
        states = found[f"stage_{i}"] = []

        def enter(_, inputs, states=states):
            states.append(inputs[0])

        def leave(_, inputs, outputs, states=states):
            states.append(outputs[0])

        hooks.append(stage.register_forward_pre_hook(enter))
        hooks.extend(block.register_forward_hook(leave) for block in stage.blocks)
    size = module.config.image_size
    out = module(
        **torch_batch(batch, pixel_values="image"),
        interpolate_pos_encoding=batch["image"].shape[1:3] != (size, size),
    )
    for hook in hooks:
        hook.remove()
    return {**out, **{name: tuple(states) for name, states in found.items()}}


def case(make, height=16, width=16, stages=2, **more):
    hidden = {f"image_encoder/stage_{i}": f"stage_{i}" for i in range(stages)}
    return Case(make, **dict(batch=images(height, width), call=call, hidden=hidden) | more)


headed = functools.partial(
    case,
    original("SwinForImageClassification", num_labels=5),
    absent=("last_hidden_state", "pooler_output"),
)
CASES = {
    "plain": case(original(), golden=True, gradients=True),
    "classifier": headed(golden=True, gradients=True),
    "windows that do not divide": case(original(window_size=3), 28, 28, gradients=True),
    "patches that do not divide": case(original(window_size=3), 26, 41),
    "one row of windows": case(original(depths=[2], num_heads=[2]), 8, 32, stages=1),
    "odd depths": case(original(depths=[1, 3], image_size=32), 32, 32),
    "three stages": case(original(depths=[2, 2, 2], num_heads=[1, 2, 4]), 32, 32, stages=3),
    "positions": case(original(use_absolute_embeddings=True), gradients=True),
    "positions of another size": case(original(use_absolute_embeddings=True), 24, 20),
    "no qkv bias": case(original(qkv_bias=False)),
    "half as wide inside": case(original(mlp_ratio=2.0)),
    "relu": case(original(hidden_act="relu")),
    "epsilon": case(original(layer_norm_eps=1e-2)),
    "mask token": case(original(model={"use_mask_token": True})),
    "no pooler": case(original(model={"add_pooling_layer": False}), absent=("pooler_output",)),
}
BASE = {"tiny": case(original(base=True), 224, 224, stages=4)}
