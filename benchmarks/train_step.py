"""Time one training step of mmflax against PyTorch: same sizes, same batch, float32, one run.

Image tower, text tower, METER-like co-attention and VQA head; forward, backward and AdamW. The two
take turns, so that a busy machine slows both, and the ratio is the median of the turns' ratios.
On a busy machine compare them on one core each, by processor time: PyTorch's threads wait for the
slowest of them, XLA's do not.

    python benchmarks/train_step.py                       # ViT-B/16 + BERT-base + 6 layers
    python benchmarks/train_step.py --size small --steps 9
    taskset -c 0 python benchmarks/train_step.py --size small --threads 1   # cpu_ratio
"""

import argparse
import json
import time
from collections.abc import Callable

import numpy as np

SIZES = {
    "tiny": dict(width=192, heads=3, depth=4, fusion=2, image_size=64, vocab=2000, answers=100),
    "small": dict(width=384, heads=6, depth=6, fusion=3, image_size=224, vocab=8000, answers=1000),
    "base": dict(
        width=768, heads=12, depth=12, fusion=6, image_size=224, vocab=30522, answers=3129
    ),
}


def main() -> None:
    arguments = parse()
    sizes = SIZES[arguments.size]
    batch = make_batch(sizes, arguments.batch_size, arguments.tokens)
    ours, our_count = mmflax_step(sizes, batch, arguments)
    theirs, their_count = torch_step(sizes, batch, arguments.threads)
    turns = [(seconds(ours), seconds(theirs)) for _ in range(arguments.steps + 1)][1:]
    (jax_seconds, torch_seconds), (jax_cpu, torch_cpu) = np.array(turns).transpose(2, 1, 0)
    report = {
        "size": arguments.size,
        "batch_size": arguments.batch_size,
        "parameters": {"mmflax": our_count, "torch": their_count},
        "mmflax_seconds": round(float(np.median(jax_seconds)), 4),
        "torch_seconds": round(float(np.median(torch_seconds)), 4),
        "fastest_ratio": round(float(jax_seconds.min() / torch_seconds.min()), 3),
        "cpu_ratio": round(float(np.median(jax_cpu / torch_cpu)), 3),
        "ratio": round(float(np.median(jax_seconds / torch_seconds)), 3),
    }
    print(json.dumps(report, indent=2))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=40, help="text length, nothing padded")
    parser.add_argument("--steps", type=int, default=5, help="timed turns after one to warm up")
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's; XLA takes all cores")
    parser.add_argument("--attention", default="auto", help="attention_impl of every encoder")
    parser.add_argument("--scan", action="store_true", help="scan over layers")
    return parser.parse_args()


def seconds(step: Callable[[], float]) -> tuple[float, float]:
    """One step's wall time and processor time; a step returns its loss, which must be finite."""
    start, cpu_start = time.perf_counter(), time.process_time()
    assert np.isfinite(step())
    return time.perf_counter() - start, time.process_time() - cpu_start


def make_batch(sizes: dict[str, int], batch_size: int, tokens: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    side = sizes["image_size"]
    return {
        "image": rng.normal(size=(batch_size, side, side, 3)).astype(np.float32),
        "tokens": rng.integers(5, sizes["vocab"], (batch_size, tokens), dtype=np.int32),
        "text_mask": np.ones((batch_size, tokens), bool),
        "label": rng.integers(0, sizes["answers"], batch_size, dtype=np.int32),
    }


def mmflax_step(
    sizes: dict[str, int], batch: dict[str, np.ndarray], arguments: argparse.Namespace
) -> tuple[Callable[[], float], int]:
    import jax
    import optax

    from mmflax.models.encoders import bert, vit
    from mmflax.models.fusion import co_attention
    from mmflax.models.vision_language import VisionLanguageModel
    from mmflax.tasks import vqa

    width, heads = sizes["width"], sizes["heads"]
    shared = dict(attention_impl=arguments.attention, scan_layers=arguments.scan)
    tower = dict(width=width, num_heads=heads, depth=sizes["depth"], **shared)
    backbone = VisionLanguageModel(
        vit.build(image_size=sizes["image_size"], patch_size=16, **tower),
        bert.build(vocab_size=sizes["vocab"], **tower),
        co_attention.build(width=width, num_heads=heads, depth=sizes["fusion"], **shared),
    )
    task = vqa.build(backbone=backbone, num_answers=sizes["answers"])
    placed = jax.device_put(batch)
    params = jax.jit(lambda key: task.model.init(key, placed, train=False)["params"])(
        jax.random.key(0)
    )
    optimizer = optax.adamw(1e-5, weight_decay=0.01)

    def loss(params):
        return task.loss(task.model.apply({"params": params}, placed, train=True), placed).mean()

    def update(params, moments):
        value, grads = jax.value_and_grad(loss)(params)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    jitted = jax.jit(update, donate_argnums=(0, 1))
    state = [params, jax.jit(optimizer.init)(params)]

    def step() -> float:
        state[0], state[1], value = jitted(*state)
        jax.block_until_ready(state)
        return float(value)

    return step, sum(leaf.size for leaf in jax.tree.leaves(params))


def torch_step(
    sizes: dict[str, int], batch: dict[str, np.ndarray], threads: int
) -> tuple[Callable[[], float], int]:
    import torch
    import transformers
    from torch import nn
    from transformers.models.vit.modeling_vit import ViTModel

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    width = sizes["width"]
    common = dict(
        hidden_size=width,
        num_attention_heads=sizes["heads"],
        num_hidden_layers=sizes["depth"],
        intermediate_size=4 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )

    class CrossBlock(nn.Module):
        """Self-attention, cross-attention, MLP; each a post-norm residual branch."""

        def __init__(self) -> None:
            super().__init__()
            self.projections = nn.ModuleList(nn.Linear(width, width) for _ in range(8))
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
            )
            self.norms = nn.ModuleList(nn.LayerNorm(width, 1e-12) for _ in range(3))

        def attend(self, x, context, projections):
            query, key, value = (
                project(source).unflatten(-1, (sizes["heads"], -1)).transpose(1, 2)
                for project, source in zip(projections, (x, context, context), strict=False)
            )
            mixed = nn.functional.scaled_dot_product_attention(query, key, value)
            return projections[3](mixed.transpose(1, 2).flatten(2))

        def forward(self, x, context):
            x = self.norms[0](x + self.attend(x, x, self.projections[:4]))
            x = self.norms[1](x + self.attend(x, context, self.projections[4:]))
            return self.norms[2](x + self.mlp(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image = ViTModel(
                transformers.ViTConfig(image_size=sizes["image_size"], patch_size=16, **common),
                add_pooling_layer=False,
            )
            self.text = transformers.BertModel(
                transformers.BertConfig(vocab_size=sizes["vocab"], **common),
                add_pooling_layer=False,
            )
            self.project = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
            self.types = nn.Embedding(2, width)
            layers = range(sizes["fusion"])
            self.image_layers = nn.ModuleList(CrossBlock() for _ in layers)
            self.text_layers = nn.ModuleList(CrossBlock() for _ in layers)
            self.poolers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
            self.head = nn.Sequential(
                nn.Linear(2 * width, 2 * width),
                nn.LayerNorm(2 * width),
                nn.GELU(),
                nn.Linear(2 * width, sizes["answers"]),
            )

        def forward(self, image, tokens):
            image = self.image(pixel_values=image).last_hidden_state
            text = self.text(input_ids=tokens).last_hidden_state
            text = self.project[0](text) + self.types.weight[0]
            image = self.project[1](image) + self.types.weight[1]
            for text_layer, image_layer in zip(self.text_layers, self.image_layers, strict=True):
                text, image = text_layer(text, image), image_layer(image, text)
            pooled = [pool(x[:, 0]) for pool, x in zip(self.poolers, (text, image), strict=True)]
            return self.head(torch.tanh(torch.cat(pooled, dim=-1)))

    model = Model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.01)
    image = torch.tensor(batch["image"]).permute(0, 3, 1, 2).contiguous()
    tokens, label = (torch.tensor(batch[name]).long() for name in ("tokens", "label"))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = nn.functional.cross_entropy(model(image, tokens), label)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step, sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
