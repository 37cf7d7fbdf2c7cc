"""Pages of the site that are not files under docs/: the README, and the API reference.

A mkdocs hook: `index.md`, `changelog.md` and `contributing.md` are the files of the repository's
top folder, and every public module of mmflax gets a page that mkdocstrings fills from its
docstrings.
"""

import pathlib
import re

from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).parent.parent
SOURCE = "https://github.com/mmflax/mmflax/blob/main/"
TOP = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}


def modules():
    """Names of the public modules with something in them, packages before their modules."""
    for path in sorted((ROOT / "mmflax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if not re.search(r"\._", name) and len(path.read_text().splitlines()) > 1:
            yield name


def page(module):
    return "reference/" + module.replace(".", "/") + ".md"


def on_config(config):
    """Append the reference to the navigation, one section a package."""
    sections = {"mmflax": []}

    def section(package):
        if package not in sections:
            sections[package] = []
            parent, _, last = package.rpartition(".")
            section(parent).append({last: sections[package]})
        return sections[package]

    names = list(modules())
    for name in names:
        package, _, last = name.rpartition(".")
        if any(other.startswith(name + ".") for other in names):
            section(name).insert(0, page(name))
        else:
            section(package).append({last: page(name)})
    config.nav.append({"Reference": sections["mmflax"]})
    return config


def on_files(files, config):
    for source, target in TOP.items():
        text = with_site_links((ROOT / source).read_text())
        files.append(File.generated(config, target, content=text))
    for name in modules():
        text = f"# {name}\n\n::: {name}\n"
        files.append(File.generated(config, page(name), content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links of docs/ to files outside it lead to the repository."""
    return re.sub(r"\]\(\.\./(?!\.)([^)]+)\)", rf"]({SOURCE}\1)", markdown)


def with_site_links(text):
    """Links of a top file: into docs and to other top files on the site, others to the code."""

    def link(match):
        target = match[1]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        if target in TOP or target.startswith("docs/"):
            return f"]({TOP.get(target, target.removeprefix('docs/'))})"
        return f"]({SOURCE}{target})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)
