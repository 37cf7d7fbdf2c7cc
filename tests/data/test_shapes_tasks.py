"""Every label is worked out again from the sentence's words; words alone are worth chance."""

import hashlib
import re
from collections import Counter, defaultdict

import numpy as np
import pytest

from mmflax.data.datasets.shapes import scenes as shapes_scenes
from mmflax.data.datasets.shapes import tasks as shapes_tasks
from mmflax.data.datasets.shapes import things as shapes_things
from mmflax.errors import MmflaxError
from mmflax.evaluation.question_prior import question_prior

SIZES = {"train": 600, "test": 240}
NUMBERS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
TOGETHER = ("matching", "entailment", "nlvr", "nlvr2", "classification")
LABELS = {
    "matching": {"yes", "no"},
    "entailment": {"entailment", "neutral", "contradiction"},
    "nlvr": {"true", "false"},
    "nlvr2": {"true", "false"},
    "classification": {"positive", "negative"},
}
# sha256 over the examples of 240 test scenes. When one changes on purpose, raise scenes.VERSION and
# record the new one: earlier scores no longer compare.
GOLDEN = {
    "captioning": "52f928e6d691235f",
    "matching": "c69253f67d3ceb61",
    "retrieval": "0c1f7847e454c0f0",
    "entailment": "5ece834862797d68",
    "nlvr": "085b35ef2227b6d1",
    "nlvr2": "836c475a3cedf30d",
    "classification": "78d7307f007cffec",
    "translation": "33dedbbf27c0faf4",
}


@pytest.fixture(scope="module")
def scenes():
    return {
        split: [scene.things for scene in shapes_scenes.generate(split, size, 0, 16)]
        for split, size in SIZES.items()
    }


@pytest.fixture(scope="module")
def by_task(scenes):
    return {
        (task, split): shapes_tasks.examples(task, split, 0, scenes[split])
        for task in shapes_tasks.names()
        if task not in shapes_tasks.QUESTIONS
        for split in SIZES
    }


# Reading ------------------------------------------------------------------------------------------


def described(words, things):
    """The things that "a small red circle", "blue objects" or "red circle at the top" fits."""
    words, _, where = words.partition(" at the ")
    fits = [thing for thing in things if not where or place(thing) == where]
    for word in words.split():
        word = word.removesuffix("s")
        if word in ("small", "large"):
            fits = [t for t in fits if t.size == word]
        elif word in shapes_things.COLORS:
            fits = [t for t in fits if t.color == word]
        elif word in shapes_things.SHAPES:
            fits = [t for t in fits if t.shape == word]
        else:
            assert word in ("a", "object", "thing"), word
    return fits


def place(thing):
    row = "top" if thing.y < 1 / 3 else "bottom" if thing.y > 2 / 3 else ""
    column = "left" if thing.x < 1 / 3 else "right" if thing.x > 2 / 3 else ""
    return f"{row} {column}".strip() or "middle"


def related(first, name, second):
    """Whether some pair lies so, clearly: by more than a quarter of the picture."""
    axis = "x" if name in ("left of", "right of") else "y"
    sign = 1 if name in ("right of", "below") else -1
    gaps = [sign * (getattr(a, axis) - getattr(b, axis)) for a in first for b in second]
    assert all(abs(gap) < 0.1 or abs(gap) > 0.2 for gap in gaps)
    return any(gap > 0.2 for gap in gaps)


def holds(text, things):
    """Whether a sentence about one picture is true; None where it is about nothing there."""
    relation = r"(.+?)(?: is)? (left of|right of|above|below) (.+)"
    if match := re.fullmatch(relation, text):
        return related(described(match[1], things), match[2], described(match[3], things))
    if match := re.fullmatch(r"there (?:is|are) exactly (\w+) (.+)", text):
        return len(described(match[2], things)) == NUMBERS[match[1]]
    if match := re.fullmatch(r"there are (more|fewer) (.+) than (.+)", text):
        gap = len(described(match[2], things)) - len(described(match[3], things))
        return gap > 0 if match[1] == "more" else gap < 0
    if match := re.fullmatch(r"(every|no) (.+) is (\w+)", text):
        about = described(match[2], things)
        so = [thing for thing in about if match[3] in (thing.color, thing.size)]
        return (len(so) == len(about) if match[1] == "every" else not so) if about else None
    return all(described(part, things) for part in text.split(" and "))


def holds_of_two(text, left, right):
    more = r"there are (more|fewer) (.+) in the (left|right) picture than in the (left|right) .+"
    if match := re.fullmatch(more, text):
        assert match[3] != match[4]
        gap = len(described(match[2], left)) - len(described(match[2], right))
        return gap > 0 if (match[1] == "more") == (match[3] == "left") else gap < 0
    if match := re.fullmatch(r"the two pictures show equally many (.+)", text):
        return len(described(match[1], left)) == len(described(match[1], right))
    if match := re.fullmatch(r"in total there (?:is|are) (\w+) (.+)", text):
        return len(described(match[2], [*left, *right])) == NUMBERS[match[1]]
    if match := re.fullmatch(r"the (left|right) picture shows (.+)", text):
        return bool(described(match[2], left if match[1] == "left" else right))
    which, phrase = re.fullmatch(r"(both|exactly one|neither) pictures? shows? (.+)", text).groups()
    shown = bool(described(phrase, left)) + bool(described(phrase, right))
    return shown == {"both": 2, "exactly one": 1, "neither": 0}[which]


def follows(text, things):
    pattern = r"the (.+) that kim picked is (.+)|ann chose a (.+), and it is (.+)"
    match = re.fullmatch(pattern, text)
    noun, said = match[1] or match[3], match[2] or match[4]
    about = described(noun, things)
    assert about
    if said.startswith("on the "):
        assert not any(1 / 3 < thing.x < 2 / 3 for thing in about)
        so = [thing for thing in about if (thing.x < 0.5) == said.endswith("left")]
    else:
        so = [t for t in about if said.removeprefix("a ") in (t.color, t.shape, t.size)]
    return "entailment" if len(so) == len(about) else "neutral" if so else "contradiction"


def feeling(text, things):
    likes = r"i love (.+)|(.+) make me happy|i can never get enough of (.+)"
    dislikes = r"i hate (.+)|(.+) make me sad|i cannot stand (.+)"
    liked, hated = re.fullmatch(likes, text), re.fullmatch(dislikes, text)
    (phrase,) = (group for group in (liked or hated).groups() if group)
    return "positive" if bool(described(phrase, things)) == bool(liked) else "negative"


def solve(task, example, scenes):
    text, things = example.fields["question"], scenes[example.scene]
    if task == "matching":
        return "yes" if holds(text, things) else "no"
    if task == "nlvr":
        truth = holds(text, things)
        assert truth is not None
        return "true" if truth else "false"
    if task == "nlvr2":
        assert example.second != example.scene
        return "true" if holds_of_two(text, things, scenes[example.second]) else "false"
    return (follows if task == "entailment" else feeling)(text, things)


# Together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TOGETHER)
def test_every_label_follows_from_the_words_and_the_objects(task, by_task, scenes):
    for split in SIZES:
        for example in by_task[task, split]:
            expected = solve(task, example, scenes[split])
            assert example.fields["answer"] == expected, (example, scenes[split][example.scene])
    assert {e.fields["answer"] for e in by_task[task, "train"]} == LABELS[task]


@pytest.mark.parametrize("task", TOGETHER)
def test_each_text_has_every_label_equally_often(task, by_task):
    for split in SIZES:
        labels = defaultdict(Counter)
        for example in by_task[task, split]:
            labels[example.fields["question"]][example.fields["answer"]] += 1
        for text, counts in labels.items():
            assert set(counts) == LABELS[task] and len(set(counts.values())) == 1, (text, counts)


@pytest.mark.parametrize("task", TOGETHER)
def test_words_alone_are_worth_chance(task, by_task):
    sources = [[example.fields for example in by_task[task, split]] for split in ("train", "test")]
    prior = question_prior(*sources)
    chance = 1 / len(LABELS[task])
    assert prior == pytest.approx(dict.fromkeys(prior, chance))


@pytest.mark.parametrize("task", TOGETHER)
def test_a_picture_alone_is_worth_little_more(task, by_task, scenes):
    """Guessing by what a picture shows: the number of objects, or how many of each kind."""
    for look in (len, lambda things: tuple(sorted(Counter(t.color for t in things).values()))):
        seen = defaultdict(Counter)
        for example in by_task[task, "train"]:
            seen[look(scenes["train"][example.scene])][example.fields["answer"]] += 1
        right = sum(counts.most_common(1)[0][1] for counts in seen.values())
        assert right / len(by_task[task, "train"]) < 1 / len(LABELS[task]) + 0.03


@pytest.mark.parametrize("task", TOGETHER)
def test_most_scenes_serve_and_kinds_are_mixed(task, by_task):
    examples = by_task[task, "train"]
    served = len({example.scene for example in examples}) / SIZES["train"]
    assert served > (0.6 if task == "entailment" else 0.95)
    kinds = Counter(example.fields["question_type"] for example in examples)
    assert 2 <= len(kinds) <= 5 and min(kinds.values()) > 0.5 * max(kinds.values()), kinds


@pytest.mark.parametrize("task", ["nlvr", "nlvr2"])
def test_groups_hold_one_sentence_over_several_pictures(task, by_task):
    for split in SIZES:
        groups = defaultdict(list)
        for example in by_task[task, split]:
            assert example.fields["group"].startswith(split)
            groups[example.fields["group"]].append(example)
        assert sum(len(members) == 4 for members in groups.values()) > 0.8 * len(groups)
        for members in groups.values():
            assert len({example.fields["question"] for example in members}) == 1
            assert len({(example.scene, example.second) for example in members}) == len(members)
            answers = Counter(example.fields["answer"] for example in members)
            assert answers["true"] == answers["false"] >= 1


def test_false_captions_are_nearly_true(by_task, scenes):
    """One word of them, or a swap, is what makes them false."""
    false = [e for e in by_task["matching", "test"] if e.fields["answer"] == "no"]
    near = 0
    for example in false:
        words, things = example.fields["question"].split(), scenes["test"][example.scene]
        options = {**dict.fromkeys(shapes_things.COLORS, list(shapes_things.COLORS)),
                   **dict.fromkeys(shapes_things.SHAPES, list(shapes_things.SHAPES)),
                   **dict.fromkeys(("small", "large"), ("small", "large")),
                   **dict.fromkeys(("left", "right"), ("left", "right")),
                   **dict.fromkeys(("above", "below"), ("above", "below"))}  # fmt: skip
        changed = [
            " ".join([*words[:i], other, *words[i + 1 :]])
            for i, word in enumerate(words)
            for other in options.get(word, ())
        ]
        near += any(holds(text, things) for text in changed)
    assert near > 0.6 * len(false)


# Alone --------------------------------------------------------------------------------------------


def test_captions_name_every_object_in_order(by_task, scenes):
    for example in by_task["captioning", "train"]:
        things = scenes["train"][example.scene]
        target, references = example.fields["target"], example.fields["references"]
        parts = re.split(", | and ", target)
        assert example.fields["question"] is None and len(target.split()) <= 20
        cells = sorted(things, key=lambda t: (int(t.x * 3), int(t.y * 3)))
        assert parts == [f"a {t.color} {t.shape}" for t in cells]
        assert len(references) >= 3 and references[0] == target
        assert len(set(references)) == len(references)
        for reference in references:
            words = Counter(re.findall(r"\w+", reference))
            assert not Counter(re.findall(r"\w+", target)) - words
    shares = Counter(example.fields["target"] for example in by_task["captioning", "train"])
    assert shares.most_common(1)[0][1] < 0.05 * SIZES["train"]


def test_retrieval_captions_fit_one_picture_alone(by_task, scenes):
    for split in SIZES:
        examples = by_task["retrieval", split]
        assert len(examples) > 0.9 * SIZES[split]
        assert len({example.fields["image_id"] for example in examples}) == len(examples)
        kept = [scenes[split][example.scene] for example in examples]
        for example in examples[:60]:
            parts = re.split(", | and ", example.fields["question"])

            def fits(things, parts=parts):
                each = sorted(f"a {t.size} {t.color} {t.shape} at the {place(t)}" for t in things)
                return each == sorted(parts)

            assert [fits(things) for things in kept].count(True) == 1
            assert fits(scenes[split][example.scene])


GERMAN = {
    "rot": "red", "grün": "green", "blau": "blue", "gelb": "yellow", "klein": "small",
    "groß": "large", "Kreis": "circle", "Quadrat": "square", "Dreieck": "triangle",
}  # fmt: skip
GENDERS = {"Kreis": "der", "Quadrat": "das", "Dreieck": "das"}
WHERE = {"oben": "top", "unten": "bottom", "links": "left", "rechts": "right"}
RELATIONS = {"links von": "left of", "rechts von": "right of", "über": "above", "unter": "below"}


def test_translations_say_what_the_picture_shows(by_task, scenes):
    def german(words, things):
        adjective, noun, *where = words.split()
        where = " ".join(WHERE[word] for word in where if word in WHERE)
        if words.endswith("in der Mitte"):
            where = "middle"
        color = GERMAN[adjective.removesuffix("n").removesuffix("e")]
        (thing,) = described(f"{color} {GERMAN[noun]}" + f" at the {where}" * bool(where), things)
        return thing

    for example in by_task["translation", "train"]:
        things = scenes["train"][example.scene]
        source, target = example.fields["question"], example.fields["target"]
        assert example.fields["references"] == [target]
        assert not set(source.split()) & set(shapes_things.SHAPES)
        article, subject, rest = re.fullmatch(r"(der|das) (.+) ist (.+)", target).groups()
        one = german(subject, things)
        assert article == GENDERS[subject.split()[1]]
        english, said = re.fullmatch(r"the (.+?) is (.+)", source).groups()
        assert described(english, things) == [one]
        if rest in ("klein", "groß"):
            assert GERMAN[rest] == one.size == said
        else:
            way, other = re.fullmatch(r"(links von|rechts von|über|unter) dem (.+)", rest).groups()
            second = german(other, things)
            name, english2 = re.fullmatch(r"(.+?) the (.+)", said).groups()
            assert described(english2, things) == [second] and RELATIONS[way] == name
            assert related([one], name, [second]) and other.split()[0].endswith("en")


def test_a_text_alone_cannot_be_translated(by_task):
    rows = [
        [{"question": e.fields["question"], "answer": e.fields["target"]} for e in examples]
        for examples in (by_task["translation", "train"], by_task["translation", "test"])
    ]
    assert question_prior(*rows)["accuracy"] < 0.45


# People -------------------------------------------------------------------------------------------


def test_annotators_err_plausibly_and_never_by_majority():
    kinds = {
        "yes": {"no"}, "2": {"1", "3"}, "0": {"1"}, "red": set(shapes_things.COLORS),
        "left": {"right"}, "below": {"above"}, "top": {"bottom"},
        "circle": set(shapes_things.SHAPES),
    }  # fmt: skip
    disagreed = 0
    for answer, slips in kinds.items():
        for which in range(100):
            given = shapes_tasks.annotators(answer, "count", 10, 0, "train", 3, which)
            assert given == shapes_tasks.annotators(answer, "count", 10, 0, "train", 3, which)
            counts = Counter(given)
            assert len(given) == 10 and counts[answer] > 5
            assert set(counts) - {answer} <= slips
            disagreed += len(counts) > 1
    assert 0.6 < disagreed / (100 * len(kinds)) < 0.95
    easy = [shapes_tasks.annotators("red", "color", 10, 0, "train", 1, i) for i in range(200)]
    assert 0.9 < np.mean([answer == "red" for given in easy for answer in given]) < 0.97


# Both ---------------------------------------------------------------------------------------------


def test_examples_are_a_pure_function_of_their_names(by_task, scenes):
    for task, split in by_task:
        assert shapes_tasks.examples(task, split, 0, scenes[split]) == by_task[task, split]
        if task not in ("retrieval",):
            assert shapes_tasks.examples(task, split, 1, scenes[split]) != by_task[task, split]
            assert shapes_tasks.examples(task, "other", 0, scenes[split]) != by_task[task, split]
    for examples in by_task.values():
        owners = [example.scene for example in examples]
        assert owners == sorted(owners)


def test_content_is_recorded(by_task):
    digests = {
        task: hashlib.sha256(repr([tuple(e) for e in examples]).encode()).hexdigest()[:16]
        for (task, split), examples in by_task.items()
        if split == "test"
    }
    assert digests == GOLDEN


def test_too_few_scenes_are_an_error(scenes):
    with pytest.raises(MmflaxError, match=r"1 scenes of the split 'test' .* nlvr2 .*num_scenes"):
        shapes_tasks.examples("nlvr2", "test", 0, scenes["test"][:1])
