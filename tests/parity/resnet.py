"""ResNet: transformers' ResNetModel and ResNetForImageClassification."""

from tests.parity.vit import images
from tests.pretrained.cases import Case, randomized, torch_batch


def original(head="ResNetModel", base=False, **changes):
    def make():
        import transformers

        small = dict(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2])
        config = transformers.ResNetConfig(**({} if base else small) | changes)
        return randomized(getattr(transformers, head)(config))

    return make


def call(module, batch):
    """Maps with their channels last, the last one as tokens; theirs are channels first."""
    out = dict(module(**torch_batch(batch, pixel_values="image"), output_hidden_states=True))
    if "last_hidden_state" in out:
        out["last_hidden_state"] = out["last_hidden_state"].flatten(2).transpose(1, 2)
        out["pooler_output"] = out["pooler_output"].flatten(1)
    out["hidden_states"] = tuple(x.permute(0, 2, 3, 1) for x in out["hidden_states"])
    return out


def case(make, height=20, width=20, **more):
    hidden = {"image_encoder": "hidden_states"}
    return Case(make, **dict(batch=images(height, width), call=call, hidden=hidden) | more)


HEAD = dict(absent=("last_hidden_state", "pooler_output"))
CASES = {
    "plain": case(original(), golden=True, gradients=True),
    "classifier": case(original("ResNetForImageClassification", num_labels=5), **HEAD, golden=True),
    "basic": case(original(layer_type="basic"), gradients=True),
    "odd sides": case(original(), 21, 34),
    "stride in the first convolution": case(original(downsample_in_bottleneck=True), 21, 34),
    "first stage halves": case(original(downsample_in_first_stage=True), 34, 21),
    "stem as wide as the first stage": case(original(layer_type="basic", embedding_size=16)),
    "gelu": case(original(hidden_act="gelu")),
}
BASE = {"resnet-50": case(original(base=True), 224, 224)}
