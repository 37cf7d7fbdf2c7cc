"""Visual question answering on your own pictures, in the Hugging Face `imagefolder` layout.

DIR holds train/metadata.jsonl and test/metadata.jsonl (validation/ is optional: a tenth of the
training images stands in for it), one JSON object a line: file_name, question, answer.

Model: the co-attention stack of METER (Dou et al. 2022, arXiv:2111.02387), small and from scratch.
Command: mmflax train --config configs/folder_vqa.py:DIR --workdir runs/mine
Hardware: a CPU for hundreds of pictures, one GPU for tens of thousands.
Expected score: your data decides; read it beside the modality views of `mmflax evaluate`.
"""

from ml_collections import ConfigDict


def get_config(arg=None):
    c = ConfigDict()
    c.seed = 0
    width, heads = 128, 4
    c.model = dict(
        image_encoder=dict(
            name="vit", width=width, depth=4, num_heads=heads, patch_size=16, position="sincos2d"
        ),
        text_encoder=dict(name="bert", width=width, depth=2, num_heads=heads),
        fusion=dict(name="co_attention", width=width, depth=3, num_heads=heads, form="meter"),
    )
    c.task = dict(name="vqa", head=dict(form="meter"))
    c.data = dict(name="folder", path=arg or "", batch_size=32, num_threads=2)
    c.processor = dict(image_size=96, vocab_size=8192)
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_cosine", peak=5e-4, warmup_steps=100),
        weight_decay=0.05,
        clip_norm=1.0,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=2000, log_every=50, eval_every=500, checkpoint_every=500)
    c.evaluation = dict(split="validation", batch_size=32)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric="validation/accuracy")
    return c
