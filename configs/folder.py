"""Any task on your own pictures (`imagefolder` layout): `configs/folder.py:TASK:DIR`.

TASK is vqa, captioning, translation, matching, entailment, classification, reasoning (two pictures)
or retrieval; docs/data.md lists the columns of each. What is "auto" is decided by the data once
they are open (`mmflax/run/recipe.py` has the rules), and printed; give a value to decide yourself.

Model: ViT with a convolutional stem (Xiao et al. 2021, arXiv:2106.14881) + BERT, whose words read
the image by cross-attention (ALBEF's, Li et al. 2021, arXiv:2107.07651), small, pre-norm and from
scratch; `--config.model.fusion.name=co_attention` lets the image read the words too. Retrieval has
no fusion, and of fewer than 50,000 pairs no transformer: convolutions and the mean of word vectors.
Command: mmflax train --config configs/folder.py:captioning:DIR --workdir runs/mine
Hardware: 2 CPU cores or one GPU, for `recipe.minutes` of training by estimate.
Expected score: your data decides; read it beside the modality views of `mmflax evaluate`.
"""

from ml_collections import ConfigDict

AUTO = "auto"
SIZES = dict(width=AUTO, depth=AUTO, num_heads=AUTO, mlp_dim=AUTO, dropout_rate=AUTO)
WRITER = dict(
    name="generation",
    memory=("fused",),
    table="text_encoder",
    decoder=dict(**SIZES, norm_style="pre"),
)
CHOICE = dict(label_smoothing=AUTO, bag_of_words=AUTO)
# task: (the task's fields, the metric that ranks checkpoints: of retrieval none, since recall in
# the batches of a small split is noise, and the end of the schedule is best)
TASKS = {
    "vqa": (dict(name="vqa", **CHOICE), "accuracy"),
    "captioning": (dict(**WRITER, label_smoothing=AUTO), "token_accuracy"),
    "translation": (dict(**WRITER, label_smoothing=AUTO), "token_accuracy"),
    "matching": (dict(name="matching", **CHOICE), "accuracy"),
    "entailment": (dict(name="matching", **CHOICE), "accuracy"),
    "classification": (dict(name="classification", **CHOICE), "accuracy"),
    "reasoning": (dict(name="reasoning", images=2, label_smoothing=AUTO), "accuracy"),
    "retrieval": (dict(name="retrieval", embed_dim=AUTO, text_pool="gap"), None),
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
            name="vit", patch_size=AUTO, stem=AUTO, position="sincos2d", cls_token=False, **SIZES
        ),
        text_encoder=dict(name="bert", norm_style="pre", **SIZES),
        fusion=dict(name="cross_attention", norm_style="pre", image_pool="gap", **SIZES),
        modality_dropout=0.0,
    )
    if name == "retrieval":
        c.model.image_encoder.stem_norm = "group"  # pixels keep their sizes beside each other
    c.task = dict(task)
    c.data = dict(
        name="folder", task=name, path=path, batch_size=AUTO, num_threads=2, max_bad_fraction=0.0
    )
    c.processor = dict(image_size=AUTO, vocab_size=8192)
    c.augment = dict(flip=AUTO, crop_scale=AUTO, brightness=AUTO, contrast=AUTO, saturation=AUTO)
    c.optim = dict(
        name="muon",
        b2=0.98,
        schedule=dict(name="warmup_cosine", peak=AUTO, warmup_steps=AUTO),
        weight_decay=AUTO,
        clip_norm=1.0,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.recipe = dict(minutes=8.0)
    c.train = dict(
        steps=AUTO, log_every=AUTO, eval_every=AUTO, checkpoint_every=AUTO, patience=AUTO
    )
    c.evaluation = dict(split="validation", batch_size=AUTO, max_examples=AUTO)
    c.checkpoint = dict(keep_last=2)
    if best:
        c.checkpoint.update(keep_best=1, best_metric=f"validation/{best}")
    return c
