"""Any task on your own pictures, from a public checkpoint: `configs/finetune.py:TASK:DIR`.

TASK is vqa, captioning, translation, matching, entailment, classification, reasoning (two pictures)
or retrieval; docs/data.md lists the columns of each. `--config.init.from=SOURCE` names the start: a
hub id, a folder, a weight file, the workdir of a run, or an image and a text encoder, VIT,BERT.

Model: the checkpoint's, where "auto" stands (`mmflax/run/finetune/`): METER, ViLT, BridgeTower,
BLIP, LXMERT, UNITER, ViLBERT or VisualBERT whole; CLIP, SigLIP, ALIGN, or a ViT (DeiT, Swin,
ResNet) and a BERT (RoBERTa) with a new co-attention on top. Sizes, preprocessing, rates, the decay
of the rates below the head and what is new are printed, and kept in the workdir; a value of yours
goes first, as in --config.processor.image_size=384 (resamples positions) or
--config.optim.freeze=image_encoder/ (a path regex: the image encoder stays as it is).
Command: mmflax train --config configs/finetune.py:vqa:DIR --config.init.from=SOURCE --workdir
    runs/mine
Hardware: one GPU for a model of base size; `mmflax plan` with the same config says what it needs.
Expected score: your data decides; read it beside the modality views of `mmflax evaluate`.
"""

from ml_collections import ConfigDict

AUTO = "auto"
# task: (the task's fields, the metric that ranks checkpoints)
TASKS = {
    "vqa": (dict(name="vqa"), "accuracy"),
    "captioning": (dict(name="generation"), "token_accuracy"),
    "translation": (dict(name="generation"), "token_accuracy"),
    "matching": (dict(name="matching"), "accuracy"),
    "entailment": (dict(name="matching"), "accuracy"),
    "classification": (dict(name="classification"), "accuracy"),
    "reasoning": (dict(name="reasoning", images=2), "accuracy"),
    "retrieval": (dict(name="retrieval"), "in_batch_recall/t2i"),
}


def get_config(arg=None):
    name, _, path = (arg or "vqa:").partition(":")
    if name not in TASKS:
        raise ValueError(
            f"{name!r} is not a task; write configs/finetune.py:TASK:DIR with one of "
            f"{', '.join(TASKS)}"
        )
    task, best = TASKS[name]
    c = ConfigDict()
    c.seed = 0
    c.model = dict(
        image_encoder=dict(name=AUTO), text_encoder=dict(name=AUTO), fusion=dict(name=AUTO)
    )
    c.task = dict(task)
    c.data = dict(name="folder", task=name, path=path, batch_size=32, num_threads=4, prefetch=4)
    c.processor = ConfigDict({"from": ""})
    c.augment = dict(flip="safe")
    c.init = ConfigDict({"from": ""})
    c.optim = dict(name="adamw", schedule=dict(name="warmup_linear", warmup_fraction=0.1))
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(epochs=10, log_every=20, eval_every=200, checkpoint_every=200)
    c.evaluation = dict(split="validation", max_examples=2048)
    c.checkpoint = dict(keep_last=1, keep_best=1, best_metric=f"validation/{best}")
    return c
