"""Visual question answering on the embedded `shapes` scenes: ViT + BERT + co-attention.

Model: the co-attention stack of METER (Dou et al. 2022, arXiv:2111.02387) at a small size, from scratch.
Command: mmflax train --config configs/shapes_vqa.py --workdir runs/shapes
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    c = ConfigDict()
    c.seed = 0
    width, heads = 96, 4
    c.model = dict(
        image_encoder=dict(
            name="vit", width=width, depth=2, num_heads=heads, patch_size=16, position="sincos2d"
        ),
        text_encoder=dict(name="bert", width=width, depth=1, num_heads=heads),
        fusion=dict(
            name="co_attention",
            width=width,
            depth=2,
            num_heads=heads,
            form="meter",
            mlp_dim=2 * width,
        ),
    )
    c.task = dict(name="vqa", head=dict(form="meter"))
    c.data = dict(name="shapes", num_scenes=6000, batch_size=128, num_threads=1)
    c.processor = dict(image_size=64, max_length=16, vocab_size=512)
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_cosine", peak=1e-3, warmup_steps=100),
        weight_decay=0.05,
        b2=0.98,
        clip_norm=1.0,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=2000, log_every=50, eval_every=1000, checkpoint_every=500)
    c.evaluation = dict(split="validation", batch_size=256, max_examples=1024)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric="validation/accuracy")
    return c
