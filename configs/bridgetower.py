"""BridgeTower from its public checkpoint: `configs/bridgetower.py:TASK`, vqa, nlvr2 or snli_ve.

Paper: Xu et al. 2023, arXiv:2206.08657. Batch, rates, decay, warm-up, epochs, image sizes and the
head's width are of the authors' commands scripts/ftfpt_base_{vqa,nlvr2,snlive}.sh, which change
the named configs of src/config.py (github.com/microsoft/BridgeTower): AdamW, linear decay, the rate
times 5 in the fusion but for its type embedding, and times 50 (vqa) or 10 in the head. What
differs: RandAugment leaves out what would falsify the words; they train on VQAv2's validation
images, too; for NLVR2 they drop out the pooled vector (0.1); the fusion's layers have epsilon 1e-5,
as in transformers, not 1e-12.
Command: mmflax train --config configs/bridgetower.py:vqa --workdir runs/bridgetower_vqa
    --config.data.source_dir=DIR --config.init.from=BRIDGETOWER --config.processor.from=BRIDGETOWER
    (the folder or hub id of a checkpoint in transformers' format, such as
    BridgeTower/bridgetower-base-itm-mlm)
Hardware: theirs 8 GPUs (num_gpus=8); `mmflax plan` shows the bytes on each chip of yours.
Expected score: VQAv2 test-std 78.73, as the authors report; not run here, where neither data nor
weights are at hand.
"""

from ml_collections import ConfigDict

# task: (data, task, metric, training examples, batch, epochs, rate, warm-up, weight decay, head's
# times, image, augmentation, processor)
RUNS = {
    "vqa": (
        "vqa_v2", dict(name="vqa", loss="sigmoid", head=dict(hidden_dim=3072)), "vqa_score",
        443_757, 512, 10, 1e-5, 0.06, 0.05, 50.0, 576, dict(randaugment_magnitude=5.0),
        dict(soft_answers=True, min_answer_count=9),
    ),
    "nlvr2": (
        "nlvr2", dict(name="reasoning", images=2, head=dict(hidden_dim=2304)), "accuracy",
        86_373, 64, 10, 5e-6, 0.1, 0.008, 10.0, 384, dict(randaugment_magnitude=7.0, flip="safe"),
        {},
    ),
    "snli_ve": (
        "snli_ve", dict(name="matching", head=dict(hidden_dim=3072)), "accuracy",
        529_527, 64, 5, 3e-6, 0.06, 0.01, 10.0, 384, dict(randaugment_magnitude=7.0, flip="safe"),
        {},
    ),
}  # fmt: skip


def get_config(arg=None):
    arg = arg or "vqa"
    if arg not in RUNS:
        raise ValueError(f"name a task, as in configs/bridgetower.py:vqa; one of {', '.join(RUNS)}")
    (
        data, task, best, examples, batch, epochs, rate, warmup, decay, times, size, augment,
        processor,
    ) = RUNS[arg]  # fmt: skip
    c = ConfigDict()
    c.seed = 0
    kinds = dict(dtype="bfloat16")
    drops = dict(dropout_rate=0.1, attention_dropout_rate=0.1)
    c.model = dict(
        image_encoder=dict(name="clip_vision", variant="B/16", **kinds),
        text_encoder=dict(
            name="bert", variant="base", num_token_types=1, epsilon=1e-5, position_offset=2,
            max_length=514, **drops, **kinds,
        ),
        fusion=dict(
            name="bridge", width=768, depth=6, num_heads=12, epsilon=1e-5, bridge_epsilon=1e-5,
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
            "resize": "squash",
            "resize_to": 0,
            "filter": "bicubic",
            "mean": (0.48145466, 0.4578275, 0.40821073),
            "std": (0.26862954, 0.26130258, 0.27577711),
            "max_length": 50,
            **processor,
        }
    )
    c.augment = dict(crop_scale=(0.5, 1.0), randaugment_ops=2, **augment)
    c.init = ConfigDict({"from": ""})
    c.plan = dict(shapes=dict(vocab_size=50265))  # RoBERTa's, to plan without the checkpoint
    steps = examples * epochs // batch
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_linear", peak=rate, warmup_steps=int(steps * warmup)),
        weight_decay=decay,
        b2=0.98,
        eps=1e-8,
        lr_multipliers=(
            (r"(^|/)fusion/type_embedding/", 1.0),
            (r"(^|/)fusion/", 5.0),
            (r"(^|/)head/", times),
        ),
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=50, eval_every=steps // 10, checkpoint_every=steps // 20)
    c.evaluation = dict(split="validation", batch_size=batch, max_examples=20_000)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric=f"validation/{best}")
    return c
