"""CLIP fine-tuned for retrieval from its checkpoint: `configs/clip.py:DATA`, coco or flickr30k.

Paper: Radford et al. 2021, arXiv:2103.00020, which trains on 400 million pairs of the web with a
batch of 32,768 for 32 epochs: Adam (0.9, 0.98, epsilon 1e-6 for its Vision Transformers), decoupled
weight decay 0.2, rate 5e-4 after 2,000 steps of warm-up, then a cosine; InfoNCE in both directions
whose learned scale starts at 1 / 0.07 and never exceeds 100. Here its optimizer, decay, schedule,
loss and limit; what differs: the data, and batch, epochs, rate and warm-up, which are a place to
start and not published ones; captions of one image are no negatives of each other. Before the first
step the run's similarities are the checkpoint's own.
Command: mmflax train --config configs/clip.py:coco --workdir runs/clip_coco
    --config.data.source_dir=DIR --config.init.from=CLIP --config.processor.from=CLIP
    (the folder or hub id of a checkpoint in transformers' format, such as
    openai/clip-vit-base-patch32; for B/16 also --config.model.image_encoder.variant=B/16)
Hardware: one device of 80 GB; `mmflax plan` shows the bytes on each chip of yours.
Expected score: not measured, as neither data nor weights are at hand. The checkpoint's own
recall at 1 on the test splits, without training, text to image and image to text: COCO 30.4 and
50.1, Flickr30k 58.8 and 78.9 (B/16: 33.1 and 52.4, 62.2 and 82.2), as open_clip reports in
docs/openclip_retrieval_results.csv.
"""

from ml_collections import ConfigDict

# data: (data set, training captions)
RUNS = {"coco": ("coco_captions", 566_747), "flickr30k": ("flickr30k", 145_000)}
BATCH, EPOCHS, RATE = 512, 5, 1e-5


def get_config(arg=None):
    arg = arg or "coco"
    if arg not in RUNS:
        raise ValueError(f"name the data, as in configs/clip.py:coco; one of {', '.join(RUNS)}")
    data, examples = RUNS[arg]
    c = ConfigDict()
    c.seed = 0
    kinds = dict(dtype="bfloat16")
    c.model = dict(
        image_encoder=dict(name="clip_vision", variant="B/32", **kinds),
        text_encoder=dict(name="clip_text", variant="B", max_length=77, **kinds),
        # Never built: the two encoders meet in their embeddings alone.
        fusion=dict(name="concat", width=512, depth=0, num_heads=8),
        modality_dropout=0.0,
    )
    c.task = dict(
        name="retrieval", embed_dim=512, loss="clip", temperature_init=0.07, max_scale=100.0
    )
    c.data = dict(
        name=data, task="retrieval", source_dir="", batch_size=BATCH, num_threads=16, prefetch=4
    )
    c.processor = ConfigDict(
        {
            "from": "",
            "image_size": 224,
            "resize": "crop",
            "floor_crop": True,
            "filter": "bicubic",
            "mean": (0.48145466, 0.4578275, 0.40821073),
            "std": (0.26862954, 0.26130258, 0.27577711),
            "max_length": 77,
        }
    )
    c.augment = dict(crop_scale=(0.9, 1.0))
    c.init = ConfigDict({"from": ""})
    c.plan = dict(shapes=dict(vocab_size=49408))  # CLIP's, to plan without the checkpoint
    steps = examples * EPOCHS // BATCH
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_cosine", peak=RATE, warmup_steps=steps // 10),
        weight_decay=0.2,
        b2=0.98,
        eps=1e-6,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=50, eval_every=steps // 10, checkpoint_every=steps // 20)
    c.evaluation = dict(split="validation", batch_size=BATCH, max_examples=20_000)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric="validation/in_batch_recall/t2i")
    return c
