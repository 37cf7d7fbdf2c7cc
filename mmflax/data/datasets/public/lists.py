"""The annotation lists that LAVIS, BLIP and ALBEF publish: one JSON list a split.

They hold the same examples as the authors' own files, in other words:

=========  =========================================================================================
captions   ``{"image", "caption", "image_id"}``, a caption each in train; a list of them elsewhere
questions  ``{"image", "question_id", "question", "answer"}`` with ten answers, none in test
pairs      ``{"images", "sentence", "label"}`` of NLVR2
evidence   ``{"image", "sentence", "label"}`` of SNLI-VE
=========  =========================================================================================

An image is a path, of which the last part is its name; ``.jpg`` may be missing.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from mmflax.data.datasets.public.prepare import Split
from mmflax.data.datasets.public.published import Example, File, Left, LocalFile, field
from mmflax.errors import MmflaxError

SITE = "https://github.com/salesforce/LAVIS (dataset cards) or https://github.com/salesforce/ALBEF"

Reader = Callable[[Sequence[LocalFile]], Iterator[Example | Left]]


def splits(table: Iterable[tuple[str, str, tuple[File, ...], int]], read: Reader) -> list[Split]:
    """Splits of (name, file of the list, places of its images, examples); test is optional."""
    return [
        Split(
            name,
            (File((file, f"annotations/{file}"), SITE),),
            images,
            read,
            count,
            optional=name == "test",
        )
        for name, file, images, count in table
    ]


def captions(files: Sequence[LocalFile]) -> Iterator[Example | Left]:
    """An example for each caption."""
    (file,) = files
    counts: Counter[str] = Counter()
    for where, entry in file.entries():
        image = _image(where, field(where, entry, "image", str))
        given = field(where, entry, "caption", (str, list))
        for caption in [given] if isinstance(given, str) else given:
            if not isinstance(caption, str):
                raise MmflaxError(f"{where}: a caption is {caption!r}; expected text.")
            text = " ".join(caption.split())
            stem = _stem(image)
            fields = {"id": f"{stem}/{counts[image]}", "image_id": stem, "caption": text}
            counts[image] += 1
            yield Example((image,), fields) if text else Left("an empty caption")


def questions(files: Sequence[LocalFile], labeled: bool = True) -> Iterator[Example | Left]:
    """VQAv2's questions; the commonest of the people's answers is the ``answer``."""
    (file,) = files
    for where, entry in file.entries():
        if entry.get("dataset", "vqa") != "vqa":
            continue  # Visual Genome's questions stand in some lists
        image = _image(where, field(where, entry, "image", str))
        fields = {
            "id": str(field(where, entry, "question_id", (int, str))),
            "image_id": _stem(image),
            "question": field(where, entry, "question", str).strip(),
        }
        if labeled:
            given = field(where, entry, "answer", (str, list))
            answers = [str(one).strip() for one in ([given] if isinstance(given, str) else given)]
            common = Counter(answer for answer in answers if answer).most_common(1)
            if not common:
                yield Left("no answer")
                continue
            fields |= {"answer": common[0][0], "answers": answers}
        yield Example((image,), fields)


def pairs(files: Sequence[LocalFile], truth: Callable[..., str]) -> Iterator[Example | Left]:
    """NLVR2's statements; ``truth`` reads the label of an entry."""
    (file,) = files
    counts: Counter[str] = Counter()
    for where, entry in file.entries():
        images = field(where, entry, "images", list)
        if len(images) != 2:
            raise MmflaxError(f"{where}: there are {len(images)} images; expected two.")
        first, second = (_image(where, image) for image in images)
        pair = first.rsplit("-img", 1)[0]
        sentence = field(where, entry, "sentence", str).strip()
        fields = {
            "id": f"{pair}/{counts[pair]}",
            "image_id": pair,
            "question": sentence,
            "answer": truth(where, entry),
            "group": f"{pair.rsplit('-', 1)[0]}--{sentence}",
        }
        counts[pair] += 1
        yield Example((first, second), fields)


def evidence(files: Sequence[LocalFile], labels: Sequence[str]) -> Iterator[Example | Left]:
    """SNLI-VE's hypotheses."""
    (file,) = files
    counts: Counter[str] = Counter()
    for where, entry in file.entries():
        image = _image(where, field(where, entry, "image", str))
        id = f"{_stem(image)}/{counts[image]}"
        counts[image] += 1
        yield hypothesis(where, entry, image, id, "sentence", "label", labels)


def hypothesis(
    where: str,
    entry: dict[str, object],
    image: str,
    id: str,
    sentence: str,
    label: str,
    labels: Sequence[str],
) -> Example | Left:
    """An example of SNLI-VE from the entry's keys ``sentence`` and ``label``."""
    if entry.get(label) == "-":
        return Left('no label that most annotators agree on ("-")')
    answer = field(where, entry, label, str)
    if answer not in labels:
        raise MmflaxError(f"{where}: {label} is {answer!r}; expected one of {', '.join(labels)}.")
    text = entry.get(sentence)
    if isinstance(text, str) and not text.strip():
        return Left("an empty hypothesis")
    text = field(where, entry, sentence, str).strip()
    return Example(
        (image,), {"id": id, "image_id": _stem(image), "question": text, "answer": answer}
    )


def _image(where: str, path: object) -> str:
    name = str(path).replace("\\", "/").rsplit("/", 1)[-1]
    if not name:
        raise MmflaxError(f"{where}: the image is {path!r}; expected a path.")
    return name if "." in name else f"{name}.jpg"


def _stem(image: str) -> str:
    """The name without its ending; of a COCO image the number that the data set goes by."""
    stem = image.rsplit(".", 1)[0]
    number = stem.rsplit("_", 1)[-1]
    return str(int(number)) if stem.startswith("COCO_") and number.isdigit() else stem
