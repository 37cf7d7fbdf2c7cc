"""DeiT: transformers' DeiTModel, DeiTForImageClassification and the one with a teacher."""

import functools

from tests.parity import vit
from tests.pretrained.cases import Case

original = functools.partial(vit.original, "DeiTModel", config="DeiTConfig")
headed = functools.partial(vit.original, config="DeiTConfig", num_labels=5)

CASES = {
    "plain": Case(original(), **vit.WHOLE, golden=True),
    "classifier": Case(headed("DeiTForImageClassification"), **vit.HEAD),
    "teacher": Case(
        headed("DeiTForImageClassificationWithTeacher"), **vit.HEAD, golden=True, gradients=True
    ),
    "no pooler": Case(original(model={"add_pooling_layer": False}), **vit.WHOLE),
    "no qkv bias": Case(original(qkv_bias=False), **vit.WHOLE),
    "wide image": Case(original(), **vit.WHOLE | dict(batch=vit.images(8, 24))),
}
BASE = {"base": Case(original(base=True), **vit.WHOLE | dict(batch=vit.images(224, 224)))}
