"""An auxiliary objective of tasks over pairs: which words of a caption each image token shows."""

import flax.linen as nn
from jaxtyping import Array, Float

from mmflax.batch_keys import require
from mmflax.losses import word_region_loss
from mmflax.models.vision_language import Encoded
from mmflax.tasks.task import Batch, Outputs


def grounded(grounding: nn.Module | None, backbone: nn.Module, encoded: Encoded) -> Outputs:
    """`image_mask` [b n], and where there is a `grounding` head `words` [b n v]: how much each
    image token shows each word of the text encoder's own table."""
    outputs: Outputs = {"image_mask": encoded.image_mask}
    if grounding is not None:
        table = backbone.text_encoder.word_embedding.embedding
        outputs["words"] = grounding(encoded.image_tokens, table)
    return outputs


def caption_word_loss(weight: float, outputs: Outputs, batch: Batch) -> Float[Array, "b"]:
    """`weight` times `word_region_loss`; 0 where no image was read, be it absent or dropped."""
    caption = require(batch, "caption", "task.caption_words", "remove task.caption_words")
    return weight * word_region_loss(
        outputs["words"],
        caption,
        batch["caption_mask"],
        present=outputs["image_mask"].any(axis=1),
    )
