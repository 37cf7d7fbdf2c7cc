"""ViLT fine-tuned from its public checkpoint: `configs/vilt.py:TASK`, vqa or nlvr2.

Paper: Kim et al. 2021, arXiv:2102.03334. Batch, rates, decay, warm-up, epochs and lengths are of
the named configs task_finetune_{vqa,nlvr2}_randaug in the authors' vilt/config.py, betas, epsilon
and the head of vilt_utils.py and vilt_module.py (github.com/dandelin/ViLT): AdamW, linear decay,
the rate times 10 in the head of vqa. What differs: images are squeezed to a square of 384 pixels,
where theirs keep their shape (short side 384, long side up to 640, padding masked); RandAugment
leaves out what would falsify the words; they train on VQAv2's validation images, too; norms have
the checkpoint's epsilon, 1e-12.
Command: mmflax train --config configs/vilt.py:vqa --workdir runs/vilt_vqa
    --config.data.source_dir=DIR --config.init.from=VILT --config.processor.from=VILT
    (the folder or hub id of a checkpoint in transformers' format, such as dandelin/vilt-b32-mlm)
Hardware: theirs 8 GPUs (num_gpus=8); `mmflax plan` shows the bytes on each chip of yours.
Expected score: VQAv2 test-dev 71.32, NLVR2 75.65 / 76.52 (dev / test), as the authors report in
EVAL.md; not run here, where neither data nor weights are at hand.
"""

from ml_collections import ConfigDict

# task: (data, task, metric, training examples, batch, head's times, processor)
RUNS = {
    "vqa": (
        "vqa_v2", dict(name="vqa", loss="sigmoid"), "vqa_score", 443_757, 256, 10.0,
        dict(soft_answers=True, min_answer_count=9),
    ),
    "nlvr2": ("nlvr2", dict(name="reasoning", images=2), "accuracy", 86_373, 128, 1.0, {}),
}  # fmt: skip
EPOCHS, RATE = 10, 1e-4


def get_config(arg=None):
    arg = arg or "vqa"
    if arg not in RUNS:
        raise ValueError(f"name a task, as in configs/vilt.py:vqa; one of {', '.join(RUNS)}")
    data, task, best, examples, batch, times, processor = RUNS[arg]
    c = ConfigDict()
    c.seed = 0
    kinds = dict(dropout_rate=0.1, dtype="bfloat16")
    layer = dict(width=768, num_heads=12, mlp_dim=3072, epsilon=1e-12)
    c.model = dict(
        image_encoder=dict(name="patches", width=768, patch_size=32, **kinds),
        # Words are embedded, and read by the fusion's layers alone.
        text_encoder=dict(name="bert", depth=0, max_length=40, **layer, **kinds),
        fusion=dict(
            name="merged_attention", form="vilt", norm_style="pre", depth=12,
            num_types=3 if arg == "nlvr2" else 2, **layer, **kinds,
        ),
        modality_dropout=0.0,
    )  # fmt: skip
    c.task = dict(**task, head=dict(hidden_dim=1536))
    c.data = dict(name=data, source_dir="", batch_size=batch, num_threads=16, prefetch=4)
    c.processor = ConfigDict(
        {
            "from": "",
            "image_size": 384,
            "resize": "squash",
            "filter": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "max_length": 40,
            **processor,
        }
    )
    c.augment = dict(randaugment_ops=2, randaugment_magnitude=9.0)
    c.init = ConfigDict({"from": ""})
    c.plan = dict(shapes=dict(vocab_size=30522))  # BERT's, to plan without the checkpoint
    steps = examples * EPOCHS // batch
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_linear", peak=RATE, warmup_steps=steps // 10),
        weight_decay=0.01,
        b2=0.98,
        eps=1e-8,
        lr_multipliers=((r"(^|/)head/", times),),
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=50, eval_every=steps // 10, checkpoint_every=steps // 20)
    c.evaluation = dict(split="validation", batch_size=batch, max_examples=20_000)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric=f"validation/{best}")
    return c
