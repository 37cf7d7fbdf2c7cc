"""What messages say to type can be typed: the key exists, and the value is one that it takes."""

import ast
import pathlib
import re
import shlex

import pytest

from mmflax.config.overrides import override
from mmflax.config.reading import load_config
from mmflax.errors import MmflaxError, option
from tests.hints import hints

SOURCE = pathlib.Path(__file__).parents[2] / "mmflax"
CONFIGS = [
    "shapes_vqa.py", "shapes.py:captioning", "shapes.py:retrieval", "shapes.py:pretraining",
    "shapes.py:nlvr2", "shapes.py:classification", "folder.py:vqa:d", "public.py:vqa_v2",
]  # fmt: skip
# What stands in the holes of f-strings, by the expression there.
HOLES = {
    "part": "text_encoder", "example": "B", "split": "validation", "more": "0.2", "side": "image",
    "where": "data.batch_size", "who": "mlm", "depth": "2", "reads": "2",
    "field": "freeze", "needed": "64", "everything": "activation", "missing[0]": "peak",
    "self.write": "processor.from=x", "section": "model.image_encoder",
}  # fmt: skip
# Words in capitals stand for a value of the user's.
EXAMPLES = ("2", "0.5", "x", "True")
# Not messages, or templates of any key.
GENERAL = {"a.b", "{path}", "{name}", "data.batch_size.{key}", "{key}"}


def filled(node):
    """The text of a string or f-string, its holes filled."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    parts = []
    for part in node.values:
        if isinstance(part, ast.Constant):
            parts.append(part.value)
        else:
            code = ast.unparse(part.value)
            parts.append(HOLES.get(code, "{" + code + "}"))
    return "".join(parts)


def messages():
    """(file, text) of every string that is no docstring, and (file, hint) of `option` calls."""
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        inner = {
            id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
            for value in node.values
        }  # fmt: skip
        for node in ast.walk(tree):
            where = f"{path.relative_to(SOURCE)}:{getattr(node, 'lineno', 0)}"
            if id(node) in docs | inner:
                continue
            if isinstance(node, (ast.Constant, ast.JoinedStr)):
                yield where, filled(node)
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "option"
            if called and isinstance(node.args[0], (ast.Constant, ast.JoinedStr)):
                try:
                    value = option("k", ast.literal_eval(node.args[1])).partition("=")[2]
                except ValueError:
                    value = "VALUE"
                yield where, f"--config.{filled(node.args[0])}={value}"


def typed():
    found = {}
    for where, text in messages():
        for hint in hints(text):
            key, _, value = shlex.split(hint)[0].removeprefix("--config.").partition("=")
            if key not in GENERAL:
                found.setdefault((key, value), where)
    return found


def test_every_value_that_a_message_says_to_give_is_taken(monkeypatch):
    monkeypatch.chdir(SOURCE.parent)
    configs = [load_config(f"configs/{name}") for name in CONFIGS]
    found = typed()
    assert len(found) > 50
    refused = []
    for (key, value), where in found.items():
        open_value = not value or re.fullmatch(r"[A-Z]+|\{.*", value)
        problems = []
        for config in configs:
            for text in EXAMPLES if open_value else (value,):
                try:
                    override(config, [f"--config.{key}={text}"], str)
                except MmflaxError as error:
                    problems.append(str(error))
                    continue
                break
            else:
                continue
            break
        else:
            refused.append(f"{where}: --config.{key}={value}: {problems[-1]}")
    assert not refused, "\n".join(refused)


SECTIONS = "processor|data|task|optim|train|mesh|model|evaluation|checkpoint|init|lora|augment"


@pytest.mark.parametrize(
    "advice",
    [
        rf"\b(set|give|add|raise|lower|remove|choose|use) ({SECTIONS})\.[a-z_.]+",
        r"\b(set|give|choose) [a-z_]+=\S",
    ],
)
def test_advice_to_change_a_key_of_the_config_is_printed_as_it_is_typed(advice):
    library = ("image_size=", "family=", "second_image=")  # arguments of functions
    found = [f"{where}: {text}" for where, text in messages() if re.search(advice, text)]
    assert not [line for line in found if not any(name in line for name in library)], found
