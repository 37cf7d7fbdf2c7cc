"""LXMERT fine-tuned from its published checkpoint: `configs/lxmert.py:TASK`, vqa or nlvr2.

Paper: Tan & Bansal 2019, arXiv:1908.07490. Batch 32, rate 5e-5, 4 epochs, a tenth of the steps
warm-up, linear decay, gradients clipped at 5, texts of 20 tokens: run/{vqa,nlvr2}_finetune.bash and
src/tasks of github.com/airsplay/lxmert. Images are 36 regions of a detector; docs/data.md says
where their files come from. What differs: Adam here corrects its first steps' bias; the answers are
those of 9 training examples or more; their answer head starts from pretraining, here at random; and
they also train on VQAv2's validation images but for 5,000.
Command: mmflax train --config configs/lxmert.py:vqa --workdir runs/lxmert_vqa
    --config.data.source_dir=DIR --config.init.from=model_LXRT.pth
    --config.processor.from=BERT (a folder with bert-base-uncased's tokenizer files)
Hardware: theirs one GPU, 8 hours (its README); `mmflax plan` shows the bytes on each chip of yours.
Expected score: VQAv2 test-dev 72.42, test-std 72.54; NLVR2 dev 74.10, test-P 74.50, as that README
reports; not run here, where neither data nor weights are at hand.
"""

from ml_collections import ConfigDict

# task: (data, task, metric, training examples, processor)
RUNS = {
    "vqa": (
        "vqa_v2", dict(name="vqa", loss="sigmoid", head=dict(form="lxmert")), "vqa_score", 443_757,
        dict(soft_answers=True, min_answer_count=9),
    ),
    "nlvr2": (
        # Its head is as wide inside as the two images' vectors, and no wider.
        "nlvr2", dict(name="reasoning", images=2, head=dict(form="lxmert", hidden_dim=1536)),
        "accuracy", 86_373, {},
    ),
}  # fmt: skip


def get_config(arg=None):
    arg = arg or "vqa"
    if arg not in RUNS:
        raise ValueError(f"name a task, as in configs/lxmert.py:vqa; one of {', '.join(RUNS)}")
    data, task, best, examples, processor = RUNS[arg]
    c = ConfigDict()
    c.seed = 0
    kinds = dict(
        width=768, num_heads=12, mlp_dim=3072, dropout_rate=0.1, attention_dropout_rate=0.1,
        dtype="bfloat16",
    )  # fmt: skip
    c.model = dict(
        image_encoder=dict(name="regions", form="lxmert", depth=5, **kinds),
        text_encoder=dict(name="bert", depth=9, max_length=512, **kinds),
        fusion=dict(name="co_attention", form="lxmert", depth=5, **kinds),
        modality_dropout=0.0,
    )
    c.task = task
    batch, epochs = 32, 4
    c.data = dict(
        name=data, source_dir="", regions=36, batch_size=batch, num_threads=16, prefetch=4
    )
    c.processor = ConfigDict({"from": "", "max_length": 20, **processor})
    c.init = ConfigDict({"from": ""})
    c.plan = dict(shapes=dict(vocab_size=30522))  # BERT's, to plan without the checkpoint
    steps = examples * epochs // batch
    c.optim = dict(
        name="adamw",
        schedule=dict(name="warmup_linear", peak=5e-5, warmup_steps=steps // 10),
        weight_decay=0.01,
        no_decay=(),  # theirs decays biases and norms, too
        clip_norm=5.0,
        eps=1e-6,
    )
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.train = dict(steps=steps, log_every=50, eval_every=steps // 10, checkpoint_every=steps // 20)
    c.evaluation = dict(split="validation", batch_size=batch, max_examples=20_000)
    c.checkpoint = dict(keep_last=2, keep_best=1, best_metric=f"validation/{best}")
    return c
