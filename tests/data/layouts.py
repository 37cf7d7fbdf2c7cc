"""Small data sets in the exact layout that their authors publish, with real JPEGs and PNGs."""

import base64
import io
import json
import pathlib
import shutil
import zipfile

import numpy as np
from PIL import Image


def picture(name: str, kind: str = "JPEG") -> bytes:
    """Encoded noise of 16 x 12 pixels, another for each name."""
    pixels = np.random.default_rng(list(name.encode())).integers(0, 255, (12, 16, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_images(folder: pathlib.Path, names, kind: str = "JPEG", zipped: bool = False) -> None:
    """The images in the folder, or in ``folder.zip`` under the folder's name."""
    files = {name: picture(name, kind) for name in names}
    if zipped:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder.with_name(folder.name + ".zip"), "w") as archive:
            archive.writestr(f"{folder.name}/", "")
            for name, content in files.items():
                archive.writestr(f"{folder.name}/{name}", content)
        return
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def write_json(path: pathlib.Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_lines(path: pathlib.Path, entries) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


# Regions ------------------------------------------------------------------------------------------


def detected(name: str, boxes: int = 36, dim: int = 10) -> dict[str, np.ndarray]:
    """What a detector found in an image of 64 x 48 pixels: boxes in pixels, and features."""
    rng = np.random.default_rng(list(name.encode()))
    corners = np.sort(rng.random((boxes, 2, 2)), axis=1).reshape(boxes, 4)
    return {
        "boxes": (corners * [64, 48, 64, 48]).astype(np.float32),
        "features": rng.normal(size=(boxes, dim)).astype(np.float32),
    }


def region_row(name: str, boxes: int = 36, dim: int = 10) -> list[str]:
    """The cells of a row of LXMERT's files."""
    detection = detected(name, boxes, dim)
    ids, shares = np.arange(boxes), np.ones(boxes, np.float32)
    arrays = (ids, shares, ids, shares), (detection["boxes"], detection["features"])
    objects, regions = (
        [base64.b64encode(array.tobytes()).decode() for array in part] for part in arrays
    )
    return [name, "48", "64", *objects, str(boxes), *regions]


def write_regions(path: pathlib.Path, names, boxes: int = 36, dim: int = 10) -> None:
    """Rows as Python's csv writes them: tabs, and both ends of a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ["\t".join(region_row(name, boxes, dim)) for name in names]
    path.write_bytes("".join(f"{row}\r\n" for row in rows).encode())


def write_vqa_regions(root: pathlib.Path, sizes=(4, 2, 0), boxes: int = 36, dim: int = 10) -> None:
    """VQAv2's texts without its images, and their regions, in another order."""
    write_vqa(root, sizes)
    for folder in ("train2014", "val2014", "test2015"):
        if (root / folder).exists():
            names = sorted(path.stem for path in (root / folder).iterdir())[::-1]
            shutil.rmtree(root / folder)
            write_regions(root / f"{folder}_obj{boxes}.tsv", names, boxes, dim)


# VQAv2 --------------------------------------------------------------------------------------------


def vqa_question(image: int, number: int) -> dict:
    text = f"What is number {number} here?"
    return {"image_id": image, "question": text, "question_id": image * 1000 + number}


def vqa_annotation(image: int, number: int) -> dict:
    """The first answer is given by eight people, another by two."""
    answers = [f"answer {number}"] * 8 + ["a cat"] * 2
    return {
        "question_type": "what is",
        "multiple_choice_answer": f"answer {number}",
        "answers": [
            {"answer": answer, "answer_confidence": "yes", "answer_id": index + 1}
            for index, answer in enumerate(answers)
        ],
        "image_id": image,
        "answer_type": ("other", "yes/no", "number")[number % 3],
        "question_id": image * 1000 + number,
    }


def write_vqa(root: pathlib.Path, sizes=(4, 2, 2), zipped: bool = False) -> None:
    """``sizes`` images for train, val and test with two questions each; none = no test files."""
    head = {"info": {"version": "2.0"}, "task_type": "Open-Ended", "license": {}}
    parts = {"train2014": range(1, 1 + sizes[0]), "val2014": range(101, 101 + sizes[1])}
    for name, images in parts.items():
        pairs = [(image, number) for image in images for number in range(2)]
        write_json(
            root / f"v2_OpenEnded_mscoco_{name}_questions.json",
            head | {"questions": [vqa_question(*pair) for pair in pairs]},
        )
        write_json(
            root / f"v2_mscoco_{name}_annotations.json",
            head | {"annotations": [vqa_annotation(*pair) for pair in pairs[::-1]]},
        )
        names = [f"COCO_{name}_{image:012d}.jpg" for image in images]
        write_images(root / name, names, zipped=zipped)
    if sizes[2]:
        images = range(201, 201 + sizes[2])
        asked = [vqa_question(image, number) for image in images for number in range(2)]
        write_json(
            root / "v2_OpenEnded_mscoco_test2015_questions.json", head | {"questions": asked}
        )
        write_json(
            root / "v2_OpenEnded_mscoco_test-dev2015_questions.json",
            head | {"questions": asked[1::2]},
        )
        names = [f"COCO_test2015_{image:012d}.jpg" for image in images]
        write_images(root / "test2015", names, zipped=zipped)


# Karpathy's splits --------------------------------------------------------------------------------


def caption_image(name: str, number: int, split: str, captions: int = 5, **more) -> dict:
    sentences = [
        {
            "tokens": ["a", "dog"],
            "raw": f"A dog, number {number},  said {which}.",
            "imgid": number,
            "sentid": number * 10 + which,
        }
        for which in range(captions)
    ]
    return {
        "sentids": [sentence["sentid"] for sentence in sentences],
        "imgid": number,
        "sentences": sentences,
        "split": split,
        "filename": name,
        **more,
    }


def coco_images() -> list[dict]:
    """Two images for each of train, restval, val and test; one has six captions."""
    rows = []
    for number, split in enumerate(("train", "restval", "val", "test") * 2):
        folder = "train2014" if split == "train" else "val2014"
        name = f"COCO_{folder}_{number:012d}.jpg"
        captions = 6 if number == 0 else 5
        rows.append(
            caption_image(name, number, split, captions, filepath=folder, cocoid=number + 500)
        )
    return rows


def write_coco(root: pathlib.Path, images=None, zipped: bool = False) -> None:
    images = coco_images() if images is None else images
    write_json(root / "dataset_coco.json", {"images": images, "dataset": "coco"})
    for folder in ("train2014", "val2014"):
        names = [image["filename"] for image in images if image["filepath"] == folder]
        write_images(root / folder, names, zipped=zipped)


def write_flickr(root: pathlib.Path, zipped: bool = False) -> None:
    images = [
        caption_image(f"{number}.jpg", number, split)
        for number, split in enumerate(("train", "val", "test") * 2)
    ]
    write_json(root / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"})
    write_images(root / "flickr30k_images", [i["filename"] for i in images], zipped=zipped)


# Statements ---------------------------------------------------------------------------------------


def nlvr2_entries(split: str, sets: int) -> list[dict]:
    """Two pairs a set, with two sentences each."""
    return [
        {
            "identifier": f"{split}-{number}-{pair}-{sentence}",
            "sentence": f"Sentence {sentence} of set {number}.",
            "label": "True" if (pair + sentence) % 2 else "False",
            "left_url": "https://example.org/l.jpg",
            "right_url": "https://example.org/r.jpg",
            "synset": "dog",
            "writer": "1",
        }
        for number in range(sets)
        for pair in range(2)
        for sentence in range(2)
    ]


def write_nlvr2(root: pathlib.Path, sets=(2, 1, 1)) -> None:
    """Training images in numbered folders, all called .png and some of them JPEGs inside."""
    for split, count in zip(("train", "dev", "test1"), sets, strict=True):
        entries = nlvr2_entries(split, count)
        if split == "train":
            entries = [entry | {"directory": 7} for entry in entries]
        write_lines(root / "nlvr2" / "data" / f"{split}.json", entries)
        folder = root / "images" / "train" if split == "train" else root / split
        below = "7/" if split == "train" else ""
        pairs = {entry["identifier"].rsplit("-", 1)[0] for entry in entries}
        write_images(folder, [f"{below}{pair}-img0.png" for pair in pairs], "JPEG")
        write_images(folder, [f"{below}{pair}-img1.png" for pair in pairs], "PNG")


def write_nlvr2_regions(root: pathlib.Path, sets=(2, 1, 1)) -> None:
    """NLVR2's texts without its images, and the regions of both images of each pair."""
    files = {"train": "train", "dev": "valid", "test1": "test"}
    for (split, file), count in zip(files.items(), sets, strict=True):
        entries = nlvr2_entries(split, count)
        write_lines(root / "nlvr2" / "data" / f"{split}.json", entries)
        pairs = dict.fromkeys(entry["identifier"].rsplit("-", 1)[0] for entry in entries)
        names = [f"{pair}-img{side}" for pair in pairs for side in range(2)]
        write_regions(root / "nlvr2_imgfeat" / f"{file}_obj36.tsv", names)


def write_nlvr(root: pathlib.Path, counts=(2, 1, 1)) -> None:
    for split, count in zip(("train", "dev", "test"), counts, strict=True):
        entries = [
            {
                "sentence": f"There is a box with {number} items.",
                "label": "true" if place else "false",
                "identifier": f"{number + 70}-{place}",
                "directory": "3",
                "evals": {"r0": "true"},
                "structured_rep": [[], [], []],
            }
            for number in range(count)
            for place in range(2)
        ]
        write_lines(root / "nlvr" / split / f"{split}.json", entries)
        names = [
            f"3/{split}-{entry['identifier']}-{order}.png"
            for entry in entries
            for order in range(6)
        ]
        write_images(root / "nlvr" / split / "images", names, "PNG")


def snli_ve_entry(image: int, number: int, label: str) -> dict:
    return {
        "Flickr30K_ID": str(image),
        "annotator_labels": [label],
        "captionID": f"{image}.jpg#{number}",
        "gold_label": label,
        "pairID": f"{image}.jpg#{number}r1n",
        "sentence1": "A caption that is not shown.",
        "sentence2": f"Hypothesis {number} of {image}.",
    }


def write_snli_ve(root: pathlib.Path, zipped: bool = False) -> None:
    labels = ("entailment", "neutral", "contradiction")
    images = {"train": (1, 2), "dev": (3,), "test": (4,)}
    for split, numbers in images.items():
        entries = [
            snli_ve_entry(image, which, labels[which]) for which in range(3) for image in numbers
        ]
        write_lines(root / f"snli_ve_{split}.jsonl", entries)
    names = [f"{image}.jpg" for numbers in images.values() for image in numbers]
    write_images(root / "flickr30k_images", names, zipped=zipped)
