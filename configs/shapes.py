"""Every task on the embedded `shapes` scenes: `configs/shapes.py:TASK`.

captioning, generative_vqa, translation (a decoder writes) · matching, entailment, classification
(one picture and a text) · nlvr (a statement about one picture), nlvr2 (about two) · retrieval ·
pretraining (a mixture of objectives on pictures with captions).

Model: ViT + BERT + co-attention (METER's form, Dou et al. 2022, arXiv:2111.02387), small. The
caption's words are grounded in the image tokens beside the task (after Fang et al. 2015,
arXiv:1411.4952). Tasks that write, search or classify train from scratch. Those that judge a
sentence (matching, entailment, nlvr, nlvr2) have the model of configs/shapes_vqa.py and are to
start from its weights, since true or false says little about a picture: training on an intermediate
task first (Phang et al. 2018, arXiv:1811.01088). `--config.model.fusion.name=…` changes the fusion.
Command: mmflax train --config configs/shapes.py:captioning --workdir runs/captioning
  mmflax train --config configs/shapes.py:nlvr --workdir runs/nlvr --config.init.from=runs/shapes
  --config.processor.from=runs/shapes
Hardware: 2 CPU cores, 3 to 15 minutes a task.
Expected score: the table "Every task" in the README, each beside its modality views.
"""

from ml_collections import ConfigDict

SCRATCH = dict(width=64, num_heads=4, mlp_dim=128, activation="gelu_tanh", qk_init="shared")
DECODER = dict(
    depth=2, width=64, num_heads=4, mlp_dim=128, norm_style="pre", activation="gelu_tanh",
    qk_init="shared",
)  # fmt: skip
WRITER = dict(
    name="generation", memory=("fused",), table="text_encoder", decoder=DECODER, caption_words=0.1
)
# task: (the task's fields, the metric that ranks checkpoints, training scenes, steps)
TASKS = {
    "captioning": (WRITER, "token_accuracy", 8000, 3600),
    "generative_vqa": (WRITER, "exact", 8000, 3600),
    "translation": (WRITER, "token_accuracy", 8000, 2400),
    "matching": (dict(name="matching", caption_words=0.1), "accuracy", 30000, 2000),
    "entailment": (dict(name="matching", caption_words=0.1), "accuracy", 30000, 2000),
    "classification": (dict(name="classification", caption_words=0.1), "accuracy", 8000, 3600),
    "nlvr": (dict(name="reasoning", images=1, caption_words=0.1), "accuracy", 30000, 2000),
    "nlvr2": (dict(name="reasoning", images=2, caption_words=0.1), "accuracy", 30000, 4000),
    "pretraining": (
        dict(
            name="pretraining",
            objectives=dict(
                itc=dict(kind="clip", embed_dim=64),
                itm=1.0,
                mlm=dict(weight=1.0, whole_word=True),
                masked_patch=0.5,
            ),
        ),
        "mlm_accuracy",
        8000,
        1600,
    ),
    "retrieval": (
        dict(name="retrieval", embed_dim=64, fused=True, caption_words=0.1),
        "in_batch_recall/t2i",
        8000,
        1600,
    ),
}


# These judge a sentence; of all but matching and nlvr some sentences are longer than a question.
JUDGES = ("matching", "entailment", "nlvr", "nlvr2")
LONGER = ("entailment", "nlvr2")


def get_config(arg=None):
    arg = arg or "captioning"
    if arg not in TASKS:
        raise ValueError(
            f"name a task, as in configs/shapes.py:captioning; one of {', '.join(TASKS)}"
        )
    task, best, scenes, steps = TASKS[arg]
    data = "retrieval" if arg == "pretraining" else arg  # pictures with captions
    c = ConfigDict()
    c.seed = 0
    c.model = judging_model() if arg in JUDGES else model()
    c.model.modality_dropout = 0.0
    c.task = dict(task)
    c.data = dict(
        name="shapes", task=data, num_scenes=scenes, image_size=48, batch_size=64,
        num_threads=1,
    )  # fmt: skip
    c.processor = dict(image_size=48, caption_length=48, vocab_size=512)
    c.optim = dict(
        name="muon" if arg in JUDGES else "adamw",
        schedule=dict(name="warmup_cosine", peak=1e-3, warmup_steps=100, end=2e-5),
        weight_decay=0.05,
        b2=0.98,
        clip_norm=1.0,
    )
    c.augment = dict(flip="off")
    if arg in JUDGES:
        positions = ("^backbone/text_encoder/position_embedding/",) if arg in LONGER else ()
        c.init = ConfigDict({"from": "", "skip": ("(^|/)(head|grounding)/", *positions)})
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=100, eval_every=steps // 4, checkpoint_every=steps // 4)
    c.evaluation = dict(split="validation", batch_size=256, max_examples=1024)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric=f"validation/{best}")
    return c


def model():
    return ConfigDict(
        dict(
            image_encoder=dict(
                name="vit", depth=2, patch_size=16, position="sincos2d", cls_token=False, **SCRATCH
            ),
            text_encoder=dict(name="bert", depth=1, **SCRATCH),
            fusion=dict(
                name="co_attention", depth=2, norm_style="pre", image_pool="gap", **SCRATCH
            ),
        )
    )


def judging_model():
    """That of configs/shapes_vqa.py."""
    layer = dict(width=128, num_heads=4, mlp_dim=256, activation="gelu_tanh", qk_init="shared")
    return ConfigDict(
        dict(
            image_encoder=dict(
                name="vit", depth=1, patch_size=16, stem="conv", stem_norm="group",
                position="sincos2d", position_scale=3.0, cls_token=False, **layer,
            ),
            text_encoder=dict(name="bert", depth=1, norm_style="pre", **layer),
            fusion=dict(
                name="co_attention", depth=2, form="meter", norm_style="pre", image_pool="gap",
                text_pool="gap", **layer,
            ),
        )
    )  # fmt: skip
