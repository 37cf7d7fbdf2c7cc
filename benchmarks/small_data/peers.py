"""The models that mmflax is compared with, in PyTorch: small, plain, and quick to learn.

- `cnn_bag`: a convolutional network and a bag of words; both vectors and their product go through
  a hidden layer to the answers.
- `words`: the same without the picture, which shows what the questions alone give away.
- `cnn_infonce`: for retrieval, a convolutional network and the mean of word vectors, trained by
  InfoNCE with a learned temperature (van den Oord et al. 2018, arXiv:1807.03748; Radford et al.
  2021) on slightly moved, scaled and recolored pictures.

All train by AdamW on batches of 128, the rate falling as a cosine over the seconds or steps given.
"""

import math
import re
import time
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mmflax.data.datasets.folder import dataset
from mmflax.evaluation.bootstrap import interval
from mmflax.metrics.retrieval import both_ways, ranks, with_equal_texts

BATCH = 128
RATE, WEIGHT_DECAY, WARMUP = 1e-3, 1e-2, 100
WIDTH = 256
MOST_PIXELS = 96
SIDES = ("left", "right")  # words that a mirror image makes wrong


class Split(NamedTuple):
    """A split in memory.

    Attributes:
      images: uint8 [p 3 h w], each picture once.
      image: int64 [n], each row's picture.
      texts: [n], as they are written.
      words: [n], lists of word ids of `Data.words`; words that train lacks are left out.
      answer: int64 [n], -1 = not among train's answers; None for retrieval.
      question_type: [n].
    """

    images: torch.Tensor
    image: torch.Tensor
    texts: list[str]
    words: list[list[int]]
    answer: torch.Tensor | None
    question_type: list[str]


class Data(NamedTuple):
    """The splits of a folder with what was read from its training texts."""

    splits: dict[str, Split]
    words: dict[str, int]
    answers: list[str]


def read(path, task, splits, side=None):
    """Reads a folder as mmflax does, with the same pictures held out for validation.

    Args:
      path: of the folder.
      task: vqa or retrieval.
      splits: to keep, train among them.
      side: pixels of the pictures' sides; None takes the first one's, up to `MOST_PIXELS`.
    """
    folder = dataset.build(path=path, task=task, unseen_answers="wrong")
    sources = {name: folder.source(name) for name in splits}
    rows = {name: [source[i] for i in range(len(source))] for name, source in sources.items()}
    texts = Counter(word for row in rows["train"] for word in _words(row["question"]))
    words = {word: number for number, word in enumerate(sorted(texts))}
    answers = sorted({row["answer"] for row in rows["train"]}) if task == "vqa" else []
    if side is None:
        with Image.open(rows["train"][0]["image"]) as first:
            side = min(max(first.size), MOST_PIXELS)
    number = {answer: place for place, answer in enumerate(answers)}
    kept = {name: _split(of_split, words, number, side) for name, of_split in rows.items()}
    return Data(kept, words, answers)


def _split(rows, words, answers, side):
    places = {path: place for place, path in enumerate(dict.fromkeys(row["image"] for row in rows))}
    images = np.empty((len(places), side, side, 3), np.uint8)
    for path, place in places.items():
        with Image.open(path) as image:
            images[place] = image.convert("RGB").resize((side, side), Image.Resampling.BILINEAR)
    return Split(
        torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(),
        torch.tensor([places[row["image"]] for row in rows]),
        [row["question"] for row in rows],
        [[words[word] for word in _words(row["question"]) if word in words] for row in rows],
        torch.tensor([answers.get(row["answer"], -1) for row in rows]) if answers else None,
        [row.get("question_type", "all") for row in rows],
    )


def _words(text):
    return re.findall(r"\w+", text.lower())


class Convolutions(nn.Module):
    """Pictures uint8 [b 3 h w] to vectors [b `out`]: halved by each layer of 3 x 3 kernels.

    The last maps are flattened, so that places are told apart, or averaged.
    """

    def __init__(self, side, widths, out, flatten):
        super().__init__()
        layers = []
        for before, width in zip((3, *widths), widths, strict=False):
            convolution = nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
            side = -(-side // 2)
        self.layers = nn.Sequential(*layers)
        self.flatten = flatten
        self.out = nn.Linear(widths[-1] * (side**2 if flatten else 1), out)

    def forward(self, images):
        maps = self.layers(images.float() / 127.5 - 1)
        return self.out(maps.flatten(1) if self.flatten else maps.mean((2, 3)))


class Answering(nn.Module):
    """Logits [b a] from pictures, or None, and bags of words."""

    def __init__(self, data, side, pictures=True):
        super().__init__()
        self.text = nn.EmbeddingBag(len(data.words) + 1, WIDTH, mode="sum")
        self.image = Convolutions(side, (32, 64, 128, 128), WIDTH, True) if pictures else None
        self.head = nn.Sequential(
            nn.Linear(WIDTH * (3 if pictures else 1), 2 * WIDTH),
            nn.ReLU(),
            nn.Linear(2 * WIDTH, len(data.answers)),
        )

    def forward(self, images, bags):
        text = self.text(*bags)
        if self.image is None:
            return self.head(text.relu())
        image = self.image(images)
        return self.head(torch.cat([image.relu(), text.relu(), image * text], dim=1))


class Matching(nn.Module):
    """Unit vectors [b 256] of pictures and of texts, about 1.6 million parameters in the first."""

    def __init__(self, data, side):
        super().__init__()
        self.image = Convolutions(side, (32, 64, 128, 256, 512), WIDTH, False)
        self.text = nn.EmbeddingBag(len(data.words) + 1, WIDTH, mode="mean")
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images, bags):
        return self.of_images(images) @ self.of_texts(bags).T * self.scale.exp().clamp(max=100)

    def of_images(self, images):
        return F.normalize(self.image(images), dim=1)

    def of_texts(self, bags):
        return F.normalize(self.text(*bags), dim=1)


def bags_of(split, rows, empty):
    """What an `EmbeddingBag` takes for these rows; a text without known words has `empty`."""
    lists = [split.words[row] or [empty] for row in rows]
    starts = np.cumsum([0, *map(len, lists)])[:-1]
    return torch.tensor([word for words in lists for word in words]), torch.from_numpy(starts)


def moved(images, mirror, random):
    """Pictures moved by up to a tenth, scaled by up to 15 %, recolored and, where `mirror`, turned.

    Args:
      images: uint8 [b 3 h w].
      mirror: bool [b], which may be mirrored; half of them are.
      random: a torch generator.

    Returns:
      float [b 3 h w] of 0 to 255; what comes in from outside repeats the border.
    """

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(len(images), *shape, generator=random)

    scale = uniform(0.87, 1.15)
    flip = torch.where(mirror & (uniform(0, 1) < 0.5), -1.0, 1.0)
    zero = torch.zeros(len(images))
    shift = uniform(-0.2, 0.2, 2)
    rows = [flip * scale, zero, shift[:, 0], zero, scale, shift[:, 1]]
    grid = F.affine_grid(
        torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False
    )
    images = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    gain, offset = uniform(0.8, 1.2, 1, 1, 1), uniform(-20, 20, 3, 1, 1)
    return (images * gain + offset).clamp(0, 255)


def fit(model, loss, count, *, seed, seconds=None, steps=None):
    """Trains for `seconds` or `steps`; `loss` takes the model and rows [b] of train.

    Returns:
      (steps, seconds) that it took.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY)
    random, order, step = np.random.default_rng(seed), np.empty(0, int), 0
    began = time.perf_counter()
    model.train()
    while True:
        elapsed = time.perf_counter() - began
        done = step / steps if steps else elapsed / seconds
        if done >= 1:
            return step, elapsed
        if len(order) < min(BATCH, count):
            order = random.permutation(count)
        rows, order = order[:BATCH], order[BATCH:]
        rate = RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * done)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss(model, rows).backward()
        optimizer.step()
        step += 1


def train_peer(name, data, split, *, seed=0, seconds=None, steps=None):
    """Trains a peer and evaluates it.

    Args:
      name: cnn_bag, words or cnn_infonce.
      data: of `read`.
      split: to evaluate on.
      seed: of the initialization and the order.
      seconds: of training by the clock, or
      steps: that many.

    Returns:
      As `mmflax.run.evaluate.evaluate`: `metrics` of the view `full` and their `intervals`; with
      `steps`, `seconds` and `parameters`.
    """
    torch.manual_seed(seed)
    train = data.splits["train"]
    side = train.images.shape[-1]
    empty = len(data.words)
    if name == "cnn_infonce":
        model = Matching(data, side)
        random = torch.Generator().manual_seed(seed)
        sided = {data.words[word] for word in SIDES if word in data.words}
        mirror = torch.tensor([not sided & set(words) for words in train.words])

        def loss(model, rows):
            images = moved(train.images[train.image[rows]], mirror[rows], random)
            logits = model(images, bags_of(train, rows, empty))
            target = torch.arange(len(rows))
            return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

        score = _retrieval
    else:
        model = Answering(data, side, pictures=name == "cnn_bag")

        def loss(model, rows):
            images = train.images[train.image[rows]] if model.image else None
            return F.cross_entropy(model(images, bags_of(train, rows, empty)), train.answer[rows])

        score = _accuracy
    steps, seconds = fit(model, loss, len(train.words), seed=seed, seconds=seconds, steps=steps)
    model.eval()
    with torch.inference_mode():
        metrics, intervals = score(model, data.splits[split], empty)
    return {
        "split": split,
        "examples": len(data.splits[split].words),
        "metrics": {"full": metrics},
        "intervals": intervals,
        "steps": steps,
        "seconds": round(seconds, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _accuracy(model, split, empty):
    right = np.empty(len(split.words))
    for start in range(0, len(right), 512):
        rows = np.arange(start, min(start + 512, len(right)))
        images = split.images[split.image[rows]] if model.image else None
        guess = model(images, bags_of(split, rows, empty)).argmax(1)
        right[rows] = (guess == split.answer[rows]).numpy()
    types = np.array(split.question_type)
    masks = {"accuracy": np.ones(len(types), bool)}
    if len(set(types)) > 1:
        masks |= {f"accuracy/{name}": types == name for name in sorted(set(types))}
    images = split.image.numpy()
    metrics: dict[str, Any] = {name: float(right[mask].mean()) for name, mask in masks.items()}
    return metrics, {
        name: interval(right[mask], groups=images[mask]) for name, mask in masks.items()
    }


def _retrieval(model, split, empty):
    images = torch.cat([model.of_images(part) for part in split.images.split(512)])
    texts = model.of_texts(bags_of(split, range(len(split.words)), empty))
    scores, owner = (images @ texts.T).numpy(), split.image.numpy()
    # As `mmflax evaluate` counts a folder.
    of_images, of_texts = with_equal_texts(owner, split.texts)
    to_text, to_image = ranks(scores, of_images, of_texts), ranks(scores.T, of_texts, of_images)
    intervals = {
        "i2t/recall@1": interval(to_text <= 1),
        "t2i/recall@1": interval(to_image <= 1, groups=owner),
    }
    return both_ways(to_text, to_image), intervals
