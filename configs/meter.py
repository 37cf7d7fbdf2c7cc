"""METER fine-tuned from its published checkpoint: `configs/meter.py:TASK`, vqa, nlvr2 or snli_ve.

Paper: Dou et al. 2022, arXiv:2111.02387. Batch, rates, epochs and image sizes are of the named
configs task_finetune_*_clip_bert with clip16 and text_roberta in the authors' meter/config.py
(github.com/zdou0830/METER): AdamW, weight decay 0.01, a tenth of the steps warm-up, linear decay,
the rate times 5 in the co-attention and times 50 (vqa) or 10 in the head. What differs: our mirror
and color changes in place of their RandAugment, and their training on VQAv2's validation images.
Command: mmflax train --config configs/meter.py:vqa --workdir runs/meter_vqa
    --config.data.source_dir=DIR --config.init.from=meter_clip16_288_roberta_pretrain.ckpt
    --config.processor.from=ROBERTA (a folder with roberta-base's tokenizer files)
Hardware: theirs 8 GPUs (num_gpus=8); `mmflax plan` shows the bytes on each chip of yours.
Expected score: VQAv2 test-std 77.64, SNLI-VE 80.86 / 81.19 (dev / test), as the authors report; not
run here, where neither data nor weights are at hand.
"""

from ml_collections import ConfigDict

# task: (data, task, metric, training examples, batch, epochs, rate, head's times, image, processor)
RUNS = {
    "vqa": (
        "vqa_v2", dict(name="vqa", loss="sigmoid"), "vqa_score", 443_757, 512, 10, 5e-6, 50.0, 576,
        dict(soft_answers=True, min_answer_count=9),
    ),
    "nlvr2": (
        "nlvr2", dict(name="reasoning", images=2), "accuracy", 86_373, 256, 10, 1e-5, 10.0, 288, {},
    ),
    "snli_ve": (
        "snli_ve", dict(name="matching"), "accuracy", 529_527, 64, 5, 2e-6, 10.0, 384, {},
    ),
}  # fmt: skip


def get_config(arg=None):
    arg = arg or "vqa"
    if arg not in RUNS:
        raise ValueError(f"name a task, as in configs/meter.py:vqa; one of {', '.join(RUNS)}")
    data, task, best, examples, batch, epochs, rate, times, size, processor = RUNS[arg]
    c = ConfigDict()
    c.seed = 0
    kinds = dict(dtype="bfloat16")
    drops = dict(dropout_rate=0.1, attention_dropout_rate=0.1)
    c.model = dict(
        # CLIP's image encoder without its last layer.
        image_encoder=dict(name="clip_vision", variant="B/16", depth=11, **kinds),
        text_encoder=dict(
            name="bert", variant="base", num_token_types=1, epsilon=1e-5, position_offset=2,
            max_length=514, **drops, **kinds,
        ),
        fusion=dict(
            name="co_attention", form="meter", width=768, depth=6, num_heads=12,
            num_types=3 if arg == "nlvr2" else 2, **drops, **kinds,
        ),
        modality_dropout=0.0,
    )  # fmt: skip
    c.task = task
    c.data = dict(name=data, source_dir="", batch_size=batch, num_threads=16, prefetch=4)
    c.processor = ConfigDict(
        {
            "from": "",
            "image_size": size,
            "resize": "crop",
            "floor_crop": True,
            "mean": (0.48145466, 0.4578275, 0.40821073),
            "std": (0.26862954, 0.26130258, 0.27577711),
            "max_length": 50,
            **processor,
        }
    )
    c.augment = dict(flip="safe", brightness=0.2, contrast=0.2, saturation=0.2)
    c.init = ConfigDict({"from": ""})
    c.plan = dict(shapes=dict(vocab_size=50265))  # RoBERTa's, to plan without the checkpoint
    steps = examples * epochs // batch
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_linear", peak=rate, warmup_steps=steps // 10),
        weight_decay=0.01,
        b2=0.98,
        eps=1e-8,
        lr_multipliers=((r"(^|/)fusion/", 5.0), (r"(^|/)head/", times)),
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=50, eval_every=steps // 10, checkpoint_every=steps // 20)
    c.evaluation = dict(split="validation", batch_size=batch, max_examples=20_000)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric=f"validation/{best}")
    return c
