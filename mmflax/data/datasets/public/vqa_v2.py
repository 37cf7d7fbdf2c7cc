"""``vqa_v2``: questions about COCO photographs with ten people's answers each.

Goyal et al. 2017, "Making the V in VQA Matter". Files and counts as on visualqa.org/download.html
(balanced real images): 443,757 training, 214,354 validation and 447,793 test questions; the answers
of the test splits are not public. ``answer`` is the published ``multiple_choice_answer``.
"""

import functools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from mmflax.data.dataset import Dataset, Raw
from mmflax.data.datasets.cache import Folder
from mmflax.data.datasets.public import lists
from mmflax.data.datasets.public.prepare import Split, of_regions, open_dataset
from mmflax.data.datasets.public.published import Example, File, Left, LocalFile, field
from mmflax.errors import MmflaxError

_SITE = "https://visualqa.org/download.html"
QUESTION_TYPES = ("answer_type", "question_type", "none")


def build(
    *,
    data_dir: Folder = None,
    source_dir: Folder = None,
    question_type: str = "answer_type",
    partial: bool = False,
    regions: int = 0,
) -> Dataset:
    """Splits train and validation; test and test_dev if their questions are there.

    Other arguments and errors are those of ``prepare.open_dataset``; downloads are in ``coco``.

    Args:
      question_type: what else accuracy is reported by: ``answer_type`` ("yes/no", "number",
        "other"), ``question_type`` (first words, such as "how many"), or ``none``.
    """
    if question_type not in QUESTION_TYPES:
        raise MmflaxError(
            f"question_type is {question_type!r}; choose one of {', '.join(QUESTION_TYPES)}."
        )

    def view(examples: list[Raw]) -> list[Raw]:
        return [_view(example, question_type) for example in examples]

    splits, listed = _splits(), _listed()
    if regions:
        splits, listed = (of_regions(some, regions, "mscoco_imgfeat") for some in (splits, listed))
    return open_dataset(
        "vqa_v2", "coco", splits, data_dir, source_dir, partial, regions, view=view, others=[listed]
    )


def _view(example: Raw, question_type: str) -> Raw:
    types = {key: example.pop(key, "all") for key in ("answer_type", "question_type")}
    return {**example, "question_type": types.get(question_type, "all")}


def _splits() -> list[Split]:
    def split(name: str, images: str, archive: str, published: int) -> Split:
        answers = f"v2_mscoco_{images}_annotations.json"
        annotations = File((answers,), _SITE, f"v2_Annotations_{archive}_mscoco.zip")
        read = functools.partial(_read, folder=images)
        files = (_questions(images, archive), annotations)
        return Split(name, files, (_images(images),), read, published)

    development = _questions("test-dev2015", "Test")._replace(optional=True)
    tests = (_questions("test2015", "Test"), development)
    return [
        split("train", "train2014", "Train", 443_757),
        split("validation", "val2014", "Val", 214_354),
        Split("test", tests, (_images("test2015"),), _read_test, 447_793, optional=True),
    ]


def _listed() -> list[Split]:
    train, validation, test = (split.published for split in _splits())
    coco = (_images("train2014"), _images("val2014"))
    table = [
        ("train", "vqa_train.json", coco, train),
        ("validation", "vqa_val.json", coco, validation),
    ]
    tests = [("test", "vqa_test.json", (_images("test2015"),), test)]
    return [
        *lists.splits(table, lists.questions),
        *lists.splits(tests, functools.partial(lists.questions, labeled=False)),
    ]


def _questions(images: str, archive: str) -> File:
    name = f"v2_OpenEnded_mscoco_{images}_questions.json"
    return File((name,), _SITE, f"v2_Questions_{archive}_mscoco.zip")


def _images(folder: str) -> File:
    return File((folder,), "https://cocodataset.org/#download", f"{folder}.zip")


def _read(files: Sequence[LocalFile], folder: str) -> Iterator[Example | Left]:
    questions, annotations = files
    answers: dict[int, dict[str, Any]] = {}
    content = annotations.json(hook=_answer)
    for entry in field(annotations, content, "annotations", list):
        question_id = field(annotations, entry, "question_id", int)
        if question_id in answers:
            raise MmflaxError(f"{annotations}: question_id {question_id} is annotated twice.")
        answers[question_id] = entry
    for question_id, image, text in _asked(questions):
        entry = answers.pop(question_id, {})
        where = f"{annotations}: question_id {question_id}"
        if entry.get("image_id") != image:
            raise MmflaxError(
                f"{where} is {'about another image' if entry else 'missing'}, though it is asked "
                f"in {questions}; download both files again."
            )
        answers_given = field(where, entry, "answers", list)
        wrong = next((one for one in answers_given if not isinstance(one, str)), None)
        if wrong is not None:
            raise MmflaxError(f"{where}: the annotator's answer in {wrong!r} is no text.")
        if entry.get("multiple_choice_answer") == "":
            # The commonest that is not empty either.
            common = Counter(one for one in answers_given if one and one.strip()).most_common(1)
            if not common:
                yield Left("no answer")
                continue
            entry = {**entry, "multiple_choice_answer": common[0][0]}
        fields = {
            "id": str(question_id),
            "image_id": str(image),
            "question": text,
            "answer": field(where, entry, "multiple_choice_answer", str),
            "answers": answers_given,
            "answer_type": field(where, entry, "answer_type", str),
            "question_type": field(where, entry, "question_type", str),
        }
        yield Example((f"COCO_{folder}_{image:012d}.jpg",), fields)
    if answers:
        raise MmflaxError(
            f"{annotations}: question_id {next(iter(answers))} is annotated, but not asked in "
            f"{questions}; download both files again."
        )


def _read_test(files: Sequence[LocalFile]) -> Iterator[Example]:
    """All test questions; those of test-dev, a part of them, are marked."""
    everything, *rest = files
    marked = {question_id for development in rest for question_id, _, _ in _asked(development)}
    unknown = set(marked)
    for question_id, image, text in _asked(everything):
        fields = {"id": str(question_id), "image_id": str(image), "question": text}
        marks = ("test_dev",) if question_id in marked else ()
        unknown.discard(question_id)
        yield Example((f"COCO_test2015_{image:012d}.jpg",), fields, marks)
    if unknown:
        raise MmflaxError(
            f"{rest[0]}: question_id {min(unknown)} is not in {everything}, of which it should "
            "be a part; download both files again."
        )


def _asked(questions: LocalFile) -> Iterator[tuple[int, int, str]]:
    """(question_id, image_id, question) of every entry."""
    for entry in field(questions, questions.json(), "questions", list):
        question_id = field(questions, entry, "question_id", int)
        where = f"{questions}: question_id {question_id}"
        yield (
            question_id,
            field(where, entry, "image_id", int),
            field(where, entry, "question", str).strip(),
        )


def _answer(entry: dict[str, Any]) -> Any:
    """One annotator's answer without its number and confidence: a tenth of the memory."""
    answer = entry.get("answer")
    if "answer_id" not in entry or isinstance(answer, bool) or not isinstance(answer, (str, int)):
        return entry
    return sys.intern(str(answer))
