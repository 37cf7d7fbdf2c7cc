"""Rows that several families' tables share: layers as BERT, ViT, CLIP and PyTorch name them.

`theirs` is the name of a module in the file, `ours` the path of ours; where a function adds several
modules of ours, `ours` ends in "/" or is empty.
"""

from mmflax.pretrained.rules import CONV, FLAT, LINEAR, LINEAR_OUT, Rule

Rows = tuple[Rule, ...]


def dense(theirs: str, ours: str) -> Rows:
    """A Linear with its bias."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", LINEAR),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def conv(theirs: str, ours: str) -> Rows:
    """A Conv2d, with or without a bias."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", CONV),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def norm(theirs: str, ours: str) -> Rows:
    """A LayerNorm; before 2019 its weight and bias were called gamma and beta."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/scale"),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
        Rule(f"{theirs}.gamma", f"{ours}/scale"),
        Rule(f"{theirs}.beta", f"{ours}/bias"),
    )


def batch_norm(theirs: str, ours: str) -> Rows:
    """A BatchNorm2d with its statistics."""
    names = dict(weight="scale", bias="bias", running_mean="mean", running_var="var")
    return tuple(Rule(f"{theirs}.{name}", f"{ours}/{mine}") for name, mine in names.items())


# How many batches those statistics come from.
BATCHES = r"\.num_batches_tracked$"


def classifier(theirs: str, ours: str, places: str = "0 2 3") -> Rows:
    """A Sequential of dense, GELU, norm, dense (or at "0 1 3" norm, GELU) and our `VQAHead`."""
    fc1, middle, fc2 = (f"{theirs}.{place}" for place in places.split())
    return (
        *dense(fc1, f"{ours}/fc1"),
        *norm(middle, f"{ours}/norm"),
        *dense(fc2, f"{ours}/fc2"),
    )


def attention(query: str, key: str, value: str, out: str, ours: str) -> Rows:
    """Four Linears by their names."""
    rows = [
        row
        for name, theirs in (("query", query), ("key", key), ("value", value))
        for row in (
            Rule(f"{theirs}.weight", f"{ours}/{name}/kernel", LINEAR),
            Rule(f"{theirs}.bias", f"{ours}/{name}/bias", FLAT),
        )
    ]
    return (*rows, *attention_out(out, ours))


def attention_out(theirs: str, ours: str) -> Rows:
    """The projection that leaves attention."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/out/kernel", LINEAR_OUT),
        Rule(f"{theirs}.bias", f"{ours}/out/bias"),
    )


def joined_attention(theirs: str, ours: str, qkv: str = "in_proj_", out: str = "out_proj") -> Rows:
    """PyTorch's MultiheadAttention, which keeps query, key and value in one tensor."""
    parts = [f"{ours}/{name}" for name in ("query", "key", "value")]
    return (
        Rule(f"{theirs}.{qkv}weight", tuple(f"{part}/kernel" for part in parts), LINEAR),
        Rule(f"{theirs}.{qkv}bias", tuple(f"{part}/bias" for part in parts), FLAT),
        *attention_out(f"{theirs}.{out}", ours),
    )


def bert_attention(theirs: str, ours: str, inner: str = "self") -> Rows:
    """BERT's attention with its norm: `theirs` holds `self` (or `inner`) and `output`."""
    q, k, v = (f"{theirs}.{inner}.{name}" for name in ("query", "key", "value"))
    return (
        *attention(q, k, v, f"{theirs}.output.dense", ours),
        *norm(f"{theirs}.output.LayerNorm", f"{ours}_norm"),
    )


def bert_mlp(inner: str, outer: str, ours: str) -> Rows:
    """BERT's `intermediate` and `output`, by their names."""
    return (
        *dense(f"{inner}.dense", f"{ours}mlp/fc1"),
        *dense(f"{outer}.dense", f"{ours}mlp/fc2"),
        *norm(f"{outer}.LayerNorm", f"{ours}mlp_norm"),
    )


def bert_layer(theirs: str, ours: str) -> Rows:
    """One post-norm layer of BERT."""
    return (
        *bert_attention(f"{theirs}.attention", f"{ours}attention"),
        *bert_mlp(f"{theirs}.intermediate", f"{theirs}.output", ours),
    )


def cross_layer(theirs: str, ours: str) -> Rows:
    """METER's layer of one stream: BERT's with cross-attention."""
    return (
        *bert_layer(theirs, ours),
        *bert_attention(f"{theirs}.crossattention", f"{ours}cross_attention"),
    )


def vit_layer(theirs: str, ours: str, inner: str = "attention.attention") -> Rows:
    """One pre-norm layer of transformers' ViT."""
    q, k, v = (f"{theirs}.{inner}.{name}" for name in ("query", "key", "value"))
    return (
        *norm(f"{theirs}.layernorm_before", f"{ours}attention_norm"),
        *attention(q, k, v, f"{theirs}.attention.output.dense", f"{ours}attention"),
        *norm(f"{theirs}.layernorm_after", f"{ours}mlp_norm"),
        *dense(f"{theirs}.intermediate.dense", f"{ours}mlp/fc1"),
        *dense(f"{theirs}.output.dense", f"{ours}mlp/fc2"),
    )


def clip_layer(theirs: str, ours: str) -> Rows:
    """One pre-norm layer of transformers' CLIP."""
    q, k, v, out = (f"{theirs}.self_attn.{name}_proj" for name in ("q", "k", "v", "out"))
    return (*attention(q, k, v, out, f"{ours}attention"), *clip_rest(theirs, ours))


def clip_rest(theirs: str, ours: str) -> Rows:
    """Of that layer all but the attention."""
    return (
        *norm(f"{theirs}.layer_norm1", f"{ours}attention_norm"),
        *norm(f"{theirs}.layer_norm2", f"{ours}mlp_norm"),
        *dense(f"{theirs}.mlp.fc1", f"{ours}mlp/fc1"),
        *dense(f"{theirs}.mlp.fc2", f"{ours}mlp/fc2"),
    )


def original_clip_layer(theirs: str, ours: str) -> Rows:
    """One layer as OpenAI's CLIP names it."""
    return (
        *norm(f"{theirs}.ln_1", f"{ours}attention_norm"),
        *joined_attention(f"{theirs}.attn", f"{ours}attention"),
        *norm(f"{theirs}.ln_2", f"{ours}mlp_norm"),
        *dense(f"{theirs}.mlp.c_fc", f"{ours}mlp/fc1"),
        *dense(f"{theirs}.mlp.c_proj", f"{ours}mlp/fc2"),
    )


def word_head(transform: str, kernel: str, bias: str, ours: str = "word_head") -> Rows:
    """Our `MLMHead`: dense and norm under `transform`, and the words' kernel (untied) and bias."""
    return (
        *dense(f"{transform}.dense", f"{ours}/dense"),
        *norm(f"{transform}.LayerNorm", f"{ours}/norm"),
        Rule(kernel, f"{ours}/kernel", LINEAR),
        Rule(bias, f"{ours}/bias"),
    )


# The embeddings of BERT and models made from it, and the whole bare model: transformers'
# BertModel, our `bert`.
BERT_TABLES = (
    Rule("embeddings.word_embeddings.weight", "word_embedding/embedding"),
    Rule("embeddings.position_embeddings.weight", "position_embedding/embedding"),
    Rule("embeddings.token_type_embeddings.weight", "token_type_embedding/embedding"),
)
BERT_EMBEDDINGS = (*BERT_TABLES, *norm("embeddings.LayerNorm", "embedding_norm"))
BERT = (
    *BERT_EMBEDDINGS,
    *bert_layer("encoder.layer.{i}", "encoder/layers_{i}/"),
    *dense("pooler.dense", "pooler/dense"),
)
# The image encoder of OpenAI's CLIP, and our `clip_vision`.
ORIGINAL_CLIP_VISION = (
    Rule("class_embedding", "cls", FLAT),
    Rule("conv1.weight", "patch_embedding/kernel", CONV),
    Rule("positional_embedding", "position_embedding"),
    *norm("ln_pre", "pre_norm_layer"),
    *original_clip_layer("transformer.resblocks.{i}", "encoder/layers_{i}/"),
    *norm("ln_post", "norm"),
)
# Counts from 0, which older releases saved as buffers.
POSITION_IDS = r"embeddings\.(position|token_type)_ids$"
# Stands for hidden patches in masked image modeling, and nowhere else.
MASK_TOKEN = r"embeddings\.mask_token$"
