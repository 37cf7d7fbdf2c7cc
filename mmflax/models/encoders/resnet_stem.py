"""The stem of the hybrid Vision Transformer: a ResNet, whose last map is cut into patches."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.errors import MmflaxError, option
from mmflax.models.layers.blocks import constrain_batch
from mmflax.models.layers.config import Typed
from mmflax.models.layers.conv import GroupNorm, patch_embedding, standardized_conv

# Pixels of a patch -> blocks of each stage: those of ResNet-50 up to there, with its last two
# stages in one where patches are of 16 pixels (Dosovitskiy et al. 2021, sec. 4.1).
DEPTHS = {4: (3,), 8: (3, 4), 16: (3, 4, 9), 32: (3, 4, 6, 3)}
GROUPS, EPSILON = 32, 1e-5  # of its norms, in transformers and timm


class ResNetStem(Typed):
    """An image to a grid of tokens by a ResNet (Dosovitskiy et al. 2021, sec. 3.1 and 4.1).

    It is the "ResNet (BiT)" of arXiv:2010.11929: He et al. 2016 with standardized convolutions
    (Qiao et al. 2019, arXiv:1903.10520) and group norms of 32 groups (Kolesnikov et al. 2020,
    arXiv:1912.11370), and the stride of a stage in its first 3x3. As in the published R50+ViT-B/16
    a block's ReLU follows its sum; BiT's own ResNets have it before the convolutions.

    `depths` are the blocks of each stage, None: ResNet-50's for this `patch_size` (`DEPTHS`). The
    first stage has a stride of 4 from the image, each later one 2 more: three stages see 16 pixels,
    and with `patch_size=16` every pixel of the map is a token, with 32 every 2x2 of them. `stem`
    channels enter the first stage, whose blocks have 4 times as many, each later stage's twice
    those before. What is left over at the right and the bottom is not seen.

    Where this differs from the published code: the last norm of a block starts at 1, not at 0.
    """

    width: int
    patch_size: int
    depths: tuple[int, ...] | None = None
    stem: int = 64
    use_bias: bool = True

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b i j d"]:
        depths = stage_depths(self.patch_size, self.depths)
        rows, columns = (side // self.patch_size for side in image.shape[1:3])
        x = image[:, : rows * self.patch_size, : columns * self.patch_size]
        x = standardized_conv(self.stem, 7, 2, self.dtypes, "conv")(x)
        x = nn.relu(group_norm(self.dtypes, "norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for stage, depth in enumerate(depths):
            for i in range(depth):
                x = Bottleneck(
                    width=4 * self.stem * 2**stage,
                    stride=2 if stage and not i else 1,
                    projects=not i,
                    name=f"stage_{stage}_block_{i}",
                    **self.dtypes,
                )(x)
        side = self.patch_size // stride_of(depths)
        return patch_embedding(self.width, side, self.dtypes, use_bias=self.use_bias)(x)


class Bottleneck(Typed):
    """1x1, 3x3 and 1x1, the first two a quarter as wide, added to what enters, then ReLU."""

    width: int
    stride: int
    projects: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b u v d"]:
        inner = self.width // 4
        x = y = constrain_batch(x)
        sizes = ((inner, 1, 1), (inner, 3, self.stride), (self.width, 1, 1))
        for i, (width, side, stride) in enumerate(sizes):
            y = nn.relu(y) if i else y
            y = standardized_conv(width, side, stride, self.dtypes, f"conv_{i}")(y)
            y = group_norm(self.dtypes, f"norm_{i}")(y)
        if self.projects:
            x = standardized_conv(self.width, 1, self.stride, self.dtypes, "conv_shortcut")(x)
            x = group_norm(self.dtypes, "norm_shortcut")(x)
        return nn.relu(x + y)


def group_norm(dtypes: Mapping[str, Any], name: str) -> GroupNorm:
    """The norm after every convolution."""
    return GroupNorm(groups=GROUPS, epsilon=EPSILON, name=name, **dtypes)


def stride_of(depths: Sequence[int]) -> int:
    """Pixels of the image that a pixel of the last stage's map stands for, down and across."""
    return 2 ** (1 + len(depths))


def stage_depths(patch_size: int, depths: Sequence[int] | None) -> tuple[int, ...]:
    """Blocks of each stage; None is those of ResNet-50 for patches of this size.

    Raises:
      MmflaxError: no positive number of blocks in each stage, or patches that are not a multiple of
        the stages' stride.
    """
    if depths is None:
        if patch_size not in DEPTHS:
            near = min(DEPTHS, key=lambda size: abs(size - patch_size))
            raise MmflaxError(
                f"patch_size is {patch_size}, but a ResNet halves the image 2 to 5 times; expected "
                f"one of {', '.join(map(str, DEPTHS))}: give "
                f"{option('model.image_encoder.patch_size', near)}, or "
                f"{option('model.image_encoder.stem', 'conv')}, a stem that takes any."
            )
        return DEPTHS[patch_size]
    depths = tuple(depths)
    whole = all(isinstance(depth, int) and not isinstance(depth, bool) for depth in depths)
    if not depths or not whole or min(depths) < 1:
        raise MmflaxError(
            f"stem_depths is {depths}; expected the number of blocks of each stage, each at least "
            f"1, as in {option('model.image_encoder.stem_depths', (3, 4, 9))}."
        )
    stride = stride_of(depths)
    if patch_size % stride:
        near = max(1, round(patch_size / stride)) * stride
        raise MmflaxError(
            f"patch_size is {patch_size}, but the stem's {len(depths)} stages halve the image "
            f"{len(depths) + 1} times, so it has to be a multiple of {stride}: give "
            f"{option('model.image_encoder.patch_size', near)}, or fewer stages in stem_depths."
        )
    return depths
