"""The field's public data sets at base size: `configs/public.py:DATASET`.

vqa_v2, coco_captions, coco_retrieval, flickr30k_captions, flickr30k_retrieval, nlvr2, nlvr and
snli_ve. docs/data.md says what to download from where; --config.data.source_dir=DIR says where the
files are.

Model: ViT-B/16 + BERT-base + 6 co-attention layers of METER (Dou et al. 2022, arXiv:2111.02387),
from random weights. Batch, epochs and rates are a place to start, not published ones.
Command: mmflax train --config configs/public.py:vqa_v2 --workdir runs/vqa_v2
Hardware: one TPU v5e-16 or 8 GPUs of 80 GB; `mmflax plan` shows the bytes on each chip.
Expected score: not measured (neither the data nor the hardware were at hand); far below published
figures, which start from pretrained encoders.
"""

from ml_collections import ConfigDict

WRITER = dict(
    name="generation",
    memory=("fused",),
    decoder=dict(depth=6, width=768, num_heads=12, mlp_dim=3072, dropout_rate=0.1),
    label_smoothing=0.1,
    decode=dict(method="beam", beams=4, length_penalty=0.6),
    scores=("bleu", "rouge_l", "cider_d"),
)
# One scanned layer compiles in a third of the time of a loop.
STACK = dict(remat="none", scan_layers=True, dtype="bfloat16")
SEARCH = dict(name="retrieval", embed_dim=256, fused=True)
# name: (data, task, ranking metric, training examples, batch, epochs, processor)
RUNS = {
    "vqa_v2": (
        dict(name="vqa_v2"), dict(name="vqa", loss="sigmoid"), "vqa_score", 443_757, 512, 10,
        # Answers of 9 training examples or more; over train and val together that is the 3,129 of
        # most papers (the custom follows Teney et al. 2018), over train alone it is fewer.
        dict(max_length=40, soft_answers=True, min_answer_count=9),
    ),
    "coco_captions": (
        dict(name="coco_captions"), WRITER, "token_accuracy", 566_747, 512, 10,
        dict(max_length=3, target_length=40),
    ),
    "coco_retrieval": (
        dict(name="coco_captions", task="retrieval"), SEARCH, "in_batch_recall/t2i", 566_747, 512,
        10, dict(max_length=40),
    ),
    "flickr30k_captions": (
        dict(name="flickr30k"), WRITER, "token_accuracy", 145_000, 512, 10,
        dict(max_length=3, target_length=40),
    ),
    "flickr30k_retrieval": (
        dict(name="flickr30k", task="retrieval"), SEARCH, "in_batch_recall/t2i", 145_000, 512, 10,
        dict(max_length=40),
    ),
    "nlvr2": (
        dict(name="nlvr2"), dict(name="reasoning", images=2), "accuracy", 86_373, 256, 10,
        dict(max_length=48),
    ),
    "nlvr": (
        dict(name="nlvr"), dict(name="reasoning", images=1), "accuracy", 74_460, 256, 10,
        dict(max_length=48),
    ),
    "snli_ve": (
        dict(name="snli_ve"), dict(name="matching"), "accuracy", 529_527, 512, 5,
        dict(max_length=48),
    ),
}  # fmt: skip


def get_config(arg=None):
    arg = arg or "vqa_v2"
    if arg not in RUNS:
        raise ValueError(
            f"name a data set, as in configs/public.py:vqa_v2; one of {', '.join(RUNS)}"
        )
    data, task, best, examples, batch, epochs, processor = RUNS[arg]
    c = ConfigDict()
    c.seed = 0
    c.model = dict(
        image_encoder=dict(name="vit", variant="B/16", **STACK),
        text_encoder=dict(name="bert", variant="base", dropout_rate=0.1, **STACK),
        fusion=dict(
            name="co_attention", width=768, depth=6, num_heads=12, dropout_rate=0.1, **STACK
        ),
        modality_dropout=0.0,
    )  # fmt: skip
    c.task = dict(task)
    c.data = dict(
        source_dir="", batch_size=batch, num_threads=16, prefetch=4, max_bad_fraction=0.001, **data
    )
    c.processor = dict(image_size=224, vocab_size=30522, **processor)
    # A mirror and mild color changes, where the words allow them.
    c.augment = dict(flip="safe", brightness=0.2, contrast=0.2, saturation=0.2)
    steps = examples * epochs // batch
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_cosine", peak=1e-4, warmup_steps=steps // 10),
        weight_decay=0.01,
        clip_norm=1.0,
        b2=0.98,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=50, eval_every=steps // 10, checkpoint_every=steps // 20)
    c.evaluation = dict(split="validation", batch_size=batch, max_examples=20_000)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric=f"validation/{best}")
    return c
