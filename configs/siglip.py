"""SigLIP fine-tuned for retrieval from its checkpoint: `configs/siglip.py:DATA`, coco or flickr30k.

Paper: Zhai et al. 2023, arXiv:2303.15343, which trains on WebLI with a batch of 32k: every pair is
judged by itself, by the sigmoid of its scaled cosine and a bias, both learned, from 10 and -10. The
scale has no limit (the checkpoints' are above CLIP's 100). Batch, schedule, gradient clipping and
RandAugment are of the authors' own example on COCO (siglip_lit_coco.py in google-research/
big_vision), which trains BERT beside a frozen image encoder with rate 1e-3 and decay 0.01. What
differs: both encoders train from SigLIP's weights; rate, decay and epochs are a place to start and
not published ones; captions of one image are no negatives of each other. Before the first step the
run's logits are the checkpoint's own.
Command: mmflax train --config configs/siglip.py:coco --workdir runs/siglip_coco
    --config.data.source_dir=DIR --config.init.from=SIGLIP --config.processor.from=SIGLIP
    (the folder or hub id of a checkpoint in transformers' format, such as
    google/siglip-base-patch16-224)
Hardware: one device of 80 GB; `mmflax plan` shows the bytes on each chip of yours.
Expected score: not measured, as neither data nor weights are at hand. The checkpoint's own
recall at 1 on the test splits, without training, text to image and image to text: COCO 47.8 and
65.7, Flickr30k 74.7 and 89.1, as open_clip reports in docs/openclip_retrieval_results.csv.
"""

from ml_collections import ConfigDict

# data: (data set, training captions)
RUNS = {"coco": ("coco_captions", 566_747), "flickr30k": ("flickr30k", 145_000)}
BATCH, EPOCHS, RATE = 512, 5, 1e-5


def get_config(arg=None):
    arg = arg or "coco"
    if arg not in RUNS:
        raise ValueError(f"name the data, as in configs/siglip.py:coco; one of {', '.join(RUNS)}")
    data, examples = RUNS[arg]
    c = ConfigDict()
    c.seed = 0
    kinds = dict(dtype="bfloat16")
    c.model = dict(
        image_encoder=dict(
            name="vit", variant="B/16", cls_token=False, pool="map", activation="gelu_tanh",
            epsilon=1e-6, **kinds,
        ),
        text_encoder=dict(name="siglip_text", variant="B", max_length=64, **kinds),
        # Never built: the two encoders meet in their embeddings alone.
        fusion=dict(name="concat", width=768, depth=0, num_heads=12),
        modality_dropout=0.0,
    )  # fmt: skip
    # The image's pooled vector is compared as it is; the text's goes through a layer with a bias.
    c.task = dict(
        name="retrieval", embed_dim=768, loss="sigmoid", temperature_init=0.1, bias_init=-10.0,
        max_scale=None, image_projection="none", text_projection="affine",
    )  # fmt: skip
    c.data = dict(
        name=data, task="retrieval", source_dir="", batch_size=BATCH, num_threads=16, prefetch=4
    )
    c.processor = ConfigDict(
        {
            "from": "",
            "image_size": 224,
            "resize": "squash",
            "filter": "bicubic",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "max_length": 64,
        }
    )
    c.augment = dict(flip="safe", randaugment_ops=2, randaugment_magnitude=10.0)
    c.init = ConfigDict({"from": ""})
    c.plan = dict(shapes=dict(vocab_size=32000))  # SigLIP's, to plan without the checkpoint
    steps = examples * EPOCHS // BATCH
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_cosine", peak=RATE, warmup_steps=int(0.03 * steps)),
        weight_decay=0.0,
        clip_norm=1.0,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=50, eval_every=steps // 10, checkpoint_every=steps // 20)
    c.evaluation = dict(split="validation", batch_size=BATCH, max_examples=20_000)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric="validation/in_batch_recall/t2i")
    return c
