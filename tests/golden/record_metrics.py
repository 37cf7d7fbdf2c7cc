"""Records `metrics_*.json`: fixed inputs with what the official programs make of them.

    python tests/golden/record_metrics.py OFFICIAL

OFFICIAL is a folder that holds, unchanged:

  VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py   GT-Vision-Lab/VQA at a013f00 (Python 2: its
                                                       two print statements are bracketed here)
  nlvr/metrics_structured_rep.py                       lil-lab/nlvr at 32065e1
  nlvr/nlvr/metrics_images.py                          lil-lab/nlvr at 56f4bc8
  nlvr/nlvr2/eval/metrics.py                           lil-lab/nlvr at e6a286a
  cap/pycocoevalcap/                                   the wheel pycocoevalcap 1.2, unpacked

Needs numpy, scikit-learn, and a JDK: Stanford's tokenizer 3.4.1 runs as it is in that wheel.
"""

import contextlib
import io
import json
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import types

HERE = pathlib.Path(__file__).parent


def save(name, values):
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    (HERE / f"metrics_{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"metrics_{name}.json: {len(text)} characters")


ANSWERS = [
    "yes", "Yes", "yes.", "no", "No!", "two", "2", "Two.", "a dog", "the dog", "dog", "dog.",
    "dogs", "10,000", "10000", "$1,000.50", "1000.50", "dont", "don't", "Don't know", "dont know.",
    "red/white", "red / white", "red white", "red,white", "red, white", "wi-fi", "wi - fi",
    "wifi",
    "1.5", "5.", "5", ".5", "none", "zero", "0", "ten", "10", "stop!", "what?", "what ?", "it's",
    "its", "10:30", "10:30 a.m.", " blue ", "blue\n", "light\tblue", "light blue", "", "the", "a",
    "they'dve", "they'd've", "couldnt've", "couldn't've", "yall'd've", "somebody'd", "somebodyd",
    "ow's'at", "'ows'at", '"hi"', "hi", "(hi)", "[hi]", "{hi}", "hi;bye", "hi; bye", "x=y", "a+b",
    "a_b", "back\\slash", "<b>", "me@home", "me @ home", "`tick`", "one two three", "1 2 3",
    "U.S.A.", "usa", "u.s.a", "." * 40 + "end", "." * 8 + "end", "end", "an apple a day",
    "apple day", "Im", "im", "Ive", "Id've", "twas", "'twas", "wont", "won't", "let's", "3.",
    "3.5.", "café", "no -", "no-", "no -no", "1,2,3", "1 , 2", "im,here", "theyre", "whos", "who's",
]  # fmt: skip


def vqa(official):
    source = official / "VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py"
    code = re.sub(r'print ("[^"]*")', r"print(\1)", source.read_text(encoding="utf-8"))
    module = types.ModuleType("vqaEval")
    exec(compile(code, str(source), "exec"), module.__dict__)
    draw = random.Random(0)
    questions = []
    for _ in range(400):
        pool = draw.sample(ANSWERS, draw.choice([1, 2, 3, 5]))
        given = [draw.choice(pool) for _ in range(draw.choice([10, 10, 10, 5, 3, 1]))]
        if draw.random() < 0.1:
            given = [pool[0]] * 10
        predicted = draw.choice(pool) if draw.random() < 0.8 else draw.choice(ANSWERS)
        kind, answer_type = draw.choice(["what", "is the", "how many"]), draw.choice("ab")
        questions.append(dict(p=predicted, a=given, q=kind, t=answer_type))

    class Side:
        def __init__(self, qa):
            self.qa = qa

        def getQuesIds(self):
            return list(self.qa)

    truth = {
        i: dict(
            answers=[dict(answer=a, answer_id=k) for k, a in enumerate(q["a"])],
            question_type=q["q"],
            answer_type=q["t"],
        )
        for i, q in enumerate(questions)
    }
    evaluator = module.VQAEval(
        Side(truth), Side({i: dict(answer=q["p"]) for i, q in enumerate(questions)}), n=12
    )
    forms = {
        a: evaluator.processDigitArticle(
            evaluator.processPunctuation(a.replace("\n", " ").replace("\t", " ").strip())
        )
        for a in [*ANSWERS, *evaluator.contractions, *evaluator.manualMap]
    }
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
    save(
        "vqa",
        dict(
            normalised=forms,
            questions=questions,
            each=[evaluator.evalQA[i] for i in range(len(questions))],
            overall=evaluator.accuracy["overall"],
            question_type=evaluator.accuracy["perQuestionType"],
            answer_type=evaluator.accuracy["perAnswerType"],
        ),
    )


def reasoning(official):
    draw = random.Random(1)

    def run(script, predictions, examples):
        with tempfile.TemporaryDirectory() as folder:
            csv, labels = pathlib.Path(folder, "p.csv"), pathlib.Path(folder, "l.json")
            csv.write_text("".join(f"{i},{p}\n" for i, p in predictions))
            labels.write_text("\n".join(map(json.dumps, examples)))
            command = [sys.executable, str(official / "nlvr" / script), str(csv), str(labels)]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return dict((k, float(v)) for k, v in (line.split("=") for line in out.split()))

    def answer(label):
        return label if draw.random() < 0.8 else draw.choice(["True", "False", "true", "FALSE"])

    cases = {}
    nlvr2 = [
        dict(identifier=f"dev-{s}-{pair}-{k}", label=draw.choice(["True", "False"]))
        for s in range(12)
        for pair in range(draw.randint(1, 4))
        for k in range(draw.randint(1, 2))
    ]
    rows = [(e["identifier"], answer(e["label"])) for e in nlvr2]
    cases["nlvr2"] = dict(
        ids=[e["identifier"] for e in nlvr2], labels=[e["label"] for e in nlvr2],
        predicted=[p for _, p in rows], result=run("nlvr2/eval/metrics.py", rows, nlvr2),
    )  # fmt: skip
    nlvr = [
        dict(identifier=f"{s}-{k}", label=draw.choice(["true", "false"]))
        for s in range(15)
        for k in range(draw.randint(1, 4))
    ]
    rows = [(e["identifier"], answer(e["label"])) for e in nlvr]
    cases["nlvr"] = dict(
        ids=[e["identifier"] for e in nlvr], labels=[e["label"] for e in nlvr],
        predicted=[p for _, p in rows], result=run("metrics_structured_rep.py", rows, nlvr),
    )  # fmt: skip
    # The script for images expects six orders of the boxes of every example.
    flat = [(e["identifier"], k, e["label"]) for e in nlvr for k in range(6)]
    draw.seed(5)
    rows = [(f"dev-{i}-{k}.png", label if draw.random() < 0.95 else "x") for i, k, label in flat]
    cases["nlvr_images"] = dict(
        ids=[f"{i}-{k}" for i, k, _ in flat], labels=[label for *_, label in flat],
        predicted=[p for _, p in rows], result=run("nlvr/metrics_images.py", rows, nlvr),
    )  # fmt: skip
    save("reasoning", cases)


CAPTIONS = [
    ("a man riding a wave on top of a surfboard",
     ["a man riding a wave on a surfboard in the ocean", "a surfer rides a large wave",
      "the man surfs on a wave", "a person on a surfboard riding waves", "man surfing"]),
    ("two dogs are playing in the grass", ["two dogs are playing in the grass"]),
    ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"]),
    ("", ["an empty candidate scores nothing", "nothing"]),
    ("cat", ["a cat", "cats", "the cats sleeping on cats"]),
    ("running dogs ran and run to the runner", ["the runner runs and a dog ran running",
                                                 "dogs run run run"]),
    ("a b c d e f g", ["g f e d c b a", "a c b d"]),
    ("dog dog dogs dogged dog", ["dogs dog dog dogging", "dogged dogs dog"]),
    ("it 's a man 's dog and the man ca n't see it", ["the man does n't see his dog , it 's gone",
                                                      "a man 's dog is n't there"]),
    ("a plate of food with rice , beans and meat", ["rice and beans with meat on a plate",
                                                    "a plate with meats , bean and rice"] * 3),
]  # fmt: skip
WORDS = (
    "a the of on in and with man men woman dog dogs cat cats run runs running ride rides riding "
    "table tables sit sits sitting red large bus street plays playing played time timed times"
).split()


def captions(official):
    sys.path.insert(0, str(official / "cap"))
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    draw = random.Random(2)

    def sentence(least, most):
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))

    def near(text):
        words = [w for w in text.split() if draw.random() < 0.8]
        for _ in range(draw.randint(0, 3)):
            words.insert(draw.randint(0, len(words)), draw.choice(WORDS))
        return " ".join(words) or "a"

    cases = list(CAPTIONS)
    for _ in range(60):
        text = sentence(1, 14)
        cases.append((text, [near(text) for _ in range(draw.randint(1, 6))]))
    for _ in range(15):  # few words, often repeated
        few = draw.sample(WORDS, 4)
        texts = [" ".join(draw.choice(few) for _ in range(draw.randint(8, 16))) for _ in range(3)]
        cases.append((texts[0], texts[1:]))
    hypotheses = {i: [c] for i, (c, _) in enumerate(cases)}
    truth = {i: refs for i, (_, refs) in enumerate(cases)}
    result = {}
    with contextlib.redirect_stdout(io.StringIO()):
        result["bleu"] = [float(x) for x in Bleu(4).compute_score(truth, hypotheses, verbose=0)[0]]
        result["rouge_l"] = float(Rouge().compute_score(truth, hypotheses)[0])
        result["cider_d"] = float(Cider().compute_score(truth, hypotheses)[0])
    save(
        "captions", dict(candidates=[c for c, _ in cases], references=list(truth.values())) | result
    )


SENTENCES = """
A man riding a wave on top of a surfboard.
Two dogs are playing in the grass, and one isn't happy.
A man's dog can't jump (over) the "fence", isn't it?
It's 3,000.50 dollars -- or $5.00! [ok] {x}
don't cannot gonna wanna they're we've I'd you'll I'm
The U.S. flag, Mr. Smith's cat... and so on....
a black-and-white photo; two-story bus: 10:30 a.m. & more
A stop sign that says 'stop' and `go`
See http://www.foo.com or mail test@mail.com #hashtag @user
The dogs' bowls and 50% off, 1980's and the 1980s
Café résumé naïve “quoted” ‘single’ — dash – end
a/b and/or cats, 1/2 of a pizza
hello!!! what?! fine.
A kitchen with a stove,microwave and refrigerator.
the woman's   red-white  dress is   long
A t-shirt, an x-ray and a wi-fi sign
A close-up of a mother-in-law's face.
Three people (two men, one woman) stand at St. Mary's church.
A train at 5:45 p.m. on track no. 3
Is this a dog? No! It's a cat.
The sign reads: "NO PARKING - 24 HRS."
A bottle of Coca-Cola next to an AT&T phone
there's a kid who'd eaten what's left; he'll be sick
A 10-year-old boy with a #1 hat
Rock 'n' roll band at six o'clock
A plate with 2.5 pounds of meat, 3rd place
The cat, the dog, etc. are here
A man, who shouldn't've come, couldn't leave
he said "hello" to her & left
baseball player #23 slides into 2nd base
the 1st and 2nd buses
a boy's bike; girls' bikes
$20 bill and a 5-cent coin
man w/ a hat
a photo of a man_with_underscore
E-mail, iPhone 6s and a PS4
an orange, apples & pears...
O'Brien's pub on 5th Ave. at night
'Twas a night to remember, wasn't it
lemme see, gimme that, gotta go
A cow stands in a field - it eats grass.
Some one's old-fashioned 35mm camera, circa 1950
a 3/4 view of 12 oranges; a 20ft boat
What's that?? A bird...or a plane
A group of people, all wearing hats, look at a cake that says "Happy 50th Birthday!"
""".strip().splitlines()


def tokens(official):
    sys.path.insert(0, str(official / "cap"))
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = PTBTokenizer().tokenize({i: [dict(caption=s)] for i, s in enumerate(SENTENCES)})
    save("tokens", {s: found[i][0].split() for i, s in enumerate(SENTENCES)})


def classification():
    import numpy as np
    import sklearn
    from sklearn import metrics

    rng = np.random.default_rng(0)
    cases = []
    for size, classes in ((1, 2), (7, 2), (60, 2), (200, 4), (300, 6)):
        actual = rng.integers(0, classes, size)
        predicted = np.where(rng.random(size) < 0.6, actual, rng.integers(0, classes, size))
        scores = np.round(rng.normal(size=(size, classes)) + np.eye(classes)[actual], 1)
        case = dict(actual=actual.tolist(), predicted=predicted.tolist(), scores=scores.tolist())
        case["macro_f1"] = metrics.f1_score(actual, predicted, average="macro", zero_division=0)
        known = np.union1d(actual, predicted)
        each = metrics.f1_score(actual, predicted, average=None, labels=known, zero_division=0)
        case["f1"] = dict(zip(map(str, known), map(float, each), strict=True))
        if len(set(actual)) == classes:
            one = actual == 1
            case["auroc"] = [
                float(metrics.roc_auc_score(actual == c, scores[:, c])) for c in range(classes)
            ]
            case["average_precision"] = float(metrics.average_precision_score(one, scores[:, 1]))
        cases.append(case)
    save("classification", dict(sklearn=sklearn.__version__, cases=cases))


if __name__ == "__main__":
    folder = pathlib.Path(sys.argv[1])
    vqa(folder)
    reasoning(folder)
    captions(folder)
    tokens(folder)
    classification()
