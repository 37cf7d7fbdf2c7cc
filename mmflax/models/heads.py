"""Pooling of token sequences, and heads from a fused pair to scores."""

import dataclasses
from collections.abc import Mapping

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from mmflax.errors import MmflaxError
from mmflax.models.layers.attention import attention_mask, masked_mean, zero_masked
from mmflax.models.layers.blocks import (
    ACTIVATIONS,
    MLP,
    TABLE_INIT,
    LayerNorm,
    MultiHeadAttention,
    dense,
    lookup,
)
from mmflax.models.layers.config import LayerConfig, Typed

# form: (hidden units per input unit, norm before the activation, epsilon)
FORMS = {"meter": (1, True, 1e-5), "lxmert": (2, False, 1e-12)}


class WordGrounding(Typed):
    """How much each image token shows each word: [b n i] x word table [v d] -> logits [b n v].

    The word table is the text encoder's own, so image tokens and words come to share a space before
    fusion (tokens of another width are projected first). Products are scaled to unit size at the
    start, where the table is normal(0.02).
    """

    @nn.compact
    def __call__(
        self, image: Float[Array, "b n i"], table: Float[Array, "v d"]
    ) -> Float[Array, "b n v"]:
        words, width = table.shape
        dtypes = self.dtypes
        x = image.astype(dtypes["dtype"] or dtypes["param_dtype"])
        if x.shape[-1] != width:
            x = dense(width, dtypes, name="projection")(x)
        logits = jnp.einsum("bnd,vd->bnv", x, table.astype(x.dtype)).astype(jnp.float32)
        # Most words are not in the picture: begin near that.
        bias = self.param("bias", nn.initializers.constant(-2.0), (words,), jnp.float32)
        return logits * (50.0 / width**0.5) + bias[None, None]


class VQAHead(Typed):
    """Scores of `num_answers` answers from the pooled pair, in the two published forms.

    "meter" (Dou et al. 2022): dense, norm, GELU, dense; as wide inside as its input, which is two
    poolers. "lxmert" (Tan & Bansal 2019): dense to twice the input, GELU, norm, dense. Logits are
    float32 whatever `dtype` is.
    """

    num_answers: int
    form: str = "meter"
    hidden_dim: int | None = None

    @nn.compact
    def __call__(self, pooled: Float[Array, "b e"], *, train: bool = False) -> Float[Array, "b a"]:
        times, norm_first, epsilon = lookup("form", self.form, FORMS)
        dtypes = self.dtypes
        hidden = self.hidden_dim or times * pooled.shape[-1]
        # Without a dtype a head computes in its parameters', whatever the fusion's was.
        x = pooled.astype(dtypes["dtype"] or dtypes["param_dtype"])
        x = dense(hidden, dtypes, name="fc1")(x)
        norm = LayerNorm(epsilon=epsilon, name="norm", **dtypes)
        gelu = ACTIVATIONS["gelu"]
        x = gelu(norm(x)) if norm_first else norm(gelu(x))
        return dense(self.num_answers, dtypes, name="fc2")(x).astype(jnp.float32)


class BagOfWords(Typed):
    """The picture's places and the words' sum side by side with their product, without attention.

    Words have a vector each, which are summed (iBOWIMG; Zhou et al. 2015, arXiv:1512.02167); the
    image tokens, all side by side, have one linear map, so that places are told apart; and the two
    meet in a pointwise product (Antol et al. 2015, arXiv:1505.00468, sec. 4). Beside a fusion this
    is learned in the first steps of a training from scratch, when attention is still even. It
    takes images of one size.
    """

    width: int
    vocab_size: int

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "b t"],
        text_mask: Bool[Array, "b t"],
        image: Float[Array, "b n d"],
        image_mask: Bool[Array, "b n"],
    ) -> Float[Array, "b e"]:
        """[b 3*width]; an absent modality, masked everywhere, adds zeros and the map's bias."""
        # Of unit variance, and not BERT's 0.02, which the first steps would make alike.
        shape = (self.vocab_size, self.width)
        table = self.param("word_embedding", nn.initializers.normal(1.0), shape, self.param_dtype)
        vectors = jnp.where(text_mask[..., None], table[jnp.where(text_mask, tokens, 0)], 0)
        words = vectors.sum(axis=1).astype(self.dtype or self.param_dtype)
        places = zero_masked(image, image_mask).reshape(image.shape[0], -1)
        picture = dense(self.width, self.dtypes, name="places")(places)
        return jnp.concatenate([nn.relu(picture), nn.relu(words), picture * words], axis=-1)


class MLMHead(Typed):
    """Logits of every word for every token, float32: [b t d] -> [b t v].

    BERT's head for masked language modeling (Devlin et al. 2019, in its released code): dense,
    activation, layer norm, the product with the word `table` [v e] or, without one, with a `kernel`
    of its own, and a bias. `transform=False` is the product and the bias (Press & Wolf 2017).
    """

    vocab_size: int
    activation: str = "gelu"
    epsilon: float = 1e-12
    transform: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t d"], table: Float[Array, "v e"] | None = None
    ) -> Float[Array, "b t v"]:
        dtypes = self.dtypes
        width = x.shape[-1] if table is None else table.shape[-1]
        if self.transform:
            x = dense(width, dtypes, name="dense")(x)
            x = lookup("activation", self.activation, ACTIVATIONS)(x)
            x = LayerNorm(epsilon=self.epsilon, name="norm", **dtypes)(x)
        param_dtype = dtypes["param_dtype"]
        if table is None:
            table = self.param("kernel", TABLE_INIT, (width, self.vocab_size), param_dtype).T
        bias = self.param("bias", nn.initializers.zeros, (self.vocab_size,), param_dtype)
        logits = jnp.einsum(
            "btd,vd->btv", x, table.astype(x.dtype), preferred_element_type=jnp.float32
        )
        return logits + bias.astype(jnp.float32)[None, None]


# The pooling that needs no parameters.
POOLS = ("cls", "gap")


def pool_tokens(
    tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None, *, pool: str
) -> Float[Array, "b d"]:
    """The pooling that needs no parameters: "cls" (first token) or "gap" (mean of used tokens)."""
    if pool == "cls":
        return tokens[:, 0]
    if pool == "gap":
        return masked_mean(tokens, mask)
    raise MmflaxError(f"pool is {pool!r}; expected cls or gap (map is the module MAPHead).")


class MAPHead(nn.Module):
    """Multi-head attention pooling (Zhai et al. 2022, "Scaling Vision Transformers", sec. 3.2).

    A learned probe attends to the tokens, then `x + MLP(norm(x))`; the probe has no residual.
    There is no dropout; heads, MLP, norm and dtypes are the config's.
    """

    config: LayerConfig

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b n d"], mask: Bool[Array, "b n"] | None = None, *, train: bool
    ) -> Float[Array, "b d"]:
        config = dataclasses.replace(
            self.config,
            attention_dropout_rate=0.0,
            qkv_bias=True,
            attention_impl="auto",
            qk_init="independent",
            qk_norm=False,
        )
        width = tokens.shape[-1]
        probe = self.param("probe", TABLE_INIT, (1, 1, width), config.param_dtype)
        probe = jnp.broadcast_to(probe.astype(tokens.dtype), (tokens.shape[0], 1, width))
        attend = MultiHeadAttention(config, name="attention")
        x = attend(probe, tokens, mask=attention_mask(mask), train=train)
        y = MLP(config, name="mlp")(LayerNorm(name="mlp_norm", **config.norm)(x))
        return (x + y)[:, 0]


def name_logits(logits: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs of a family's heads: `logits` where there is one, else each under its own name."""
    if len(logits) == 1:
        return {"logits": next(iter(logits.values()))}
    return {f"{name}_logits": value for name, value in logits.items()}
