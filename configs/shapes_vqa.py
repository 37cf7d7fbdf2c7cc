"""Visual question answering on the embedded `shapes` scenes: ViT + BERT + co-attention.

Model: METER's co-attention (Dou et al. 2022, arXiv:2111.02387) at a small size, pre-norm and from
scratch. The ViT has a convolutional stem (Xiao et al. 2021, arXiv:2106.14881) with a group norm and
fixed positions three times as large as usual, a stream's vector is the mean of its tokens, and the
query and key projections of a layer begin equal (after Trockman & Kolter 2023, arXiv:2305.09828).
Trained by Muon (Jordan et al. 2024) on the answers alone.
Command: mmflax train --config configs/shapes_vqa.py --workdir runs/shapes
Hardware: 2 CPU cores, about 4 minutes.
Expected score: 97.5, 97.5 and 97.7 % on the test split for seeds 0, 1 and 2 (19,233 questions; the
most frequent answer of each question gives 43.2 %), and 99.7, 99.5 and 98.6 % after 3,000 steps.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    c = ConfigDict()
    c.seed = 0
    layer = dict(width=128, num_heads=4, mlp_dim=256, activation="gelu_tanh", qk_init="shared")
    c.model = dict(
        image_encoder=dict(
            name="vit", depth=1, patch_size=16, stem="conv", stem_norm="group",
            position="sincos2d", position_scale=3.0, cls_token=False, **layer,
        ),
        text_encoder=dict(name="bert", depth=1, norm_style="pre", **layer),
        fusion=dict(
            name="co_attention", depth=2, form="meter", norm_style="pre", image_pool="gap",
            text_pool="gap", **layer,
        ),
    )  # fmt: skip
    c.model.modality_dropout = 0.0
    c.task = dict(name="vqa", head=dict(form="meter"))
    c.data = dict(name="shapes", num_scenes=30000, image_size=48, batch_size=64, num_threads=1)
    c.processor = dict(image_size=48, max_length=16, vocab_size=512)
    c.optim = dict(
        name="muon",
        schedule=dict(name="warmup_cosine", peak=1e-3, warmup_steps=110, end=2e-5),
        weight_decay=0.05,
        b2=0.98,
        clip_norm=1.0,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=2200, log_every=100, eval_every=1100, checkpoint_every=1100)
    c.evaluation = dict(split="validation", batch_size=256, max_examples=1024)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric="validation/accuracy")
    return c
