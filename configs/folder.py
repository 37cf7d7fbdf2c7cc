"""Any task on your own pictures (`imagefolder` layout): `configs/folder.py:TASK:DIR`.

TASK is vqa, captioning, translation, matching, entailment, classification, reasoning (two pictures)
or retrieval; docs/data.md lists the columns of each.

Model: ViT + BERT + co-attention (METER's form, Dou et al. 2022, arXiv:2111.02387), small and from
scratch; `--config.model.fusion.name=…` changes the fusion.
Command: mmflax train --config configs/folder.py:captioning:DIR --workdir runs/mine
Hardware: a CPU for hundreds of pictures, one GPU for tens of thousands.
Expected score: your data decides; read it beside the modality views of `mmflax evaluate`.
"""

from ml_collections import ConfigDict

WIDTH, HEADS = 128, 4
WRITER = dict(
    name="generation",
    memory=("fused",),
    table="text_encoder",
    decoder=dict(depth=3, width=WIDTH, num_heads=HEADS, mlp_dim=4 * WIDTH, norm_style="pre"),
)
# task: (the task's fields, the metric that ranks checkpoints)
TASKS = {
    "vqa": (dict(name="vqa"), "accuracy"),
    "captioning": (WRITER, "token_accuracy"),
    "translation": (WRITER, "token_accuracy"),
    "matching": (dict(name="matching"), "accuracy"),
    "entailment": (dict(name="matching"), "accuracy"),
    "classification": (dict(name="classification"), "accuracy"),
    "reasoning": (dict(name="reasoning", images=2), "accuracy"),
    "retrieval": (dict(name="retrieval", embed_dim=WIDTH, fused=True), "in_batch_recall/t2i"),
}


def get_config(arg=None):
    name, _, path = (arg or "vqa:").partition(":")
    if name not in TASKS:
        raise ValueError(
            f"{name!r} is not a task; write configs/folder.py:TASK:DIR with one of "
            f"{', '.join(TASKS)}"
        )
    task, best = TASKS[name]
    c = ConfigDict()
    c.seed = 0
    c.model = dict(
        image_encoder=dict(
            name="vit", width=WIDTH, depth=4, num_heads=HEADS, patch_size=16, position="sincos2d"
        ),
        text_encoder=dict(name="bert", width=WIDTH, depth=2, num_heads=HEADS),
        fusion=dict(name="co_attention", width=WIDTH, depth=2, num_heads=HEADS, norm_style="pre"),
        modality_dropout=0.0,
    )
    c.task = dict(task)
    c.data = dict(
        name="folder", task=name, path=path, batch_size=32, num_threads=2, max_bad_fraction=0.0
    )
    c.processor = dict(image_size=96, vocab_size=8192)
    c.augment = dict(flip="off")
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_cosine", peak=5e-4, warmup_steps=100),
        weight_decay=0.05,
        clip_norm=1.0,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=2000, log_every=50, eval_every=500, checkpoint_every=500)
    c.evaluation = dict(split="validation", batch_size=32)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric=f"validation/{best}")
    return c
