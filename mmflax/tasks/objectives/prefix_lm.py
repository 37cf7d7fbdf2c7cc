"""PrefixLM (SimVLM, Wang et al. 2022, sec. 3.2): a text's rest from the image and its beginning.

A random number of words is given and costs nothing; every later word is predicted from the image
and the words before it. Where this differs: given words too see only what is before them, which the
paper's let see each other; the image is seen whole. Needs a text encoder and a fusion that can be
`causal`: no word may see a later one, not through the image either.
"""

import flax.linen as nn
from jaxtyping import Array

from mmflax.errors import MmflaxError
from mmflax.losses.generation import prefix_lm_loss, random_prefix
from mmflax.models.heads import MLMHead
from mmflax.tasks.objectives.objective import CleanPass, Objective, draw_key
from mmflax.tasks.task import Batch, Outputs


class PrefixLM(nn.Module):
    """`logits` [b t v] of each next word, and `prefix` [b]: how many words are given."""

    vocab_size: int
    tied: bool = True
    epsilon: float = 1e-12

    @nn.compact
    def __call__(self, clean: CleanPass, *, train: bool) -> Outputs:
        backbone = clean.backbone
        for part in (backbone.text_encoder, backbone.fusion):
            if not part.supports_causal:
                raise MmflaxError(
                    f"The objective 'prefix_lm' needs a causal pass, which {type(part).__name__} "
                    "does not have; give --config.model.text_encoder.name=bert and "
                    "--config.model.fusion.name=merged_attention (or cross_attention), or leave it "
                    "out with --config.task.objectives.prefix_lm=None."
                )
        encoded = clean.encoded
        prefix = random_prefix(draw_key(self, train), encoded.text_mask)
        words = clean.encode_text(clean.batch["tokens"], causal=True, train=train)
        fused = clean.fuse(text=words, causal=True, train=train)
        head = MLMHead(self.vocab_size, epsilon=self.epsilon, name="words")
        logits = head(fused.text, clean.word_table if self.tied else None)
        return {"logits": logits, "prefix": prefix, "text_mask": encoded.text_mask}


def build(*, vocab_size: int, tied: bool = True, epsilon: float = 1e-12) -> Objective:
    """`tied` and `epsilon` are of the head, as in `mlm`."""

    def loss(outputs: Outputs, batch: Batch) -> Array:
        return prefix_lm_loss(
            outputs["logits"], batch["tokens"], outputs["text_mask"], outputs["prefix"]
        )

    return Objective(PrefixLM(vocab_size, tied, epsilon), loss)
