"""What is shipped, and that the automation calls what exists."""

import email
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import yaml

from mmflax.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(files of the sdist, files of the wheel, its metadata), built without a network."""
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(directory)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (sdist,), (wheel,) = directory.glob("*.tar.gz"), directory.glob("*.whl")
    with tarfile.open(sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"mmflax-{__version__}.dist-info/METADATA").decode()
    return source, names, email.message_from_string(metadata)


def tracked(*folders):
    done = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", *folders], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def test_nothing_but_the_given_folders_lies_at_the_top():
    """Neither a file that a test left behind nor one that was added by mistake."""
    kept = tracked("--cached", "--others", "--exclude-standard")
    folders = {name.partition("/")[0] for name in kept if "/" in name}
    named = {"mmflax", "configs", "launch", "tests", "colab", "docs", "benchmarks"}
    assert folders == named | {".ci", ".github"}


def test_sdist_holds_every_tracked_file(built):
    source, _, _ = built
    assert tracked() - source == set()
    assert {"README.md", "LICENSE", "Makefile", "tests/conftest.py", ".ci/run"} <= source


def test_wheel_holds_the_package_and_its_configs_alone(built):
    _, names, metadata = built
    expected = tracked("mmflax") | {f"mmflax/{name}" for name in tracked("configs")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert f"mmflax-{__version__}.dist-info/licenses/LICENSE" in names
    assert metadata["Version"] == __version__
    assert {url.split(",")[0] for url in metadata.get_all("Project-URL")} == set(PROJECT["urls"])


def targets():
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_make_targets_that_exist(path):
    jobs = yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert commands
    for command in commands:
        program, target, *variables = command.split()
        assert program == "make" and target in targets(), command
        assert all(re.match(r"[A-Z]+=", word) for word in variables), command


def test_workflows_test_each_python_with_the_jax_that_supports_it():
    (path,) = [path for path in WORKFLOWS if path.stem == "ci"]
    job = yaml.safe_load(path.read_text())["jobs"]["test"]
    rows = job["strategy"]["matrix"]["include"]
    assert {row["jax"] for row in rows if row["python"] == "3.11"} == {"0.10"}
    assert {row["jax"] for row in rows if row["python"] != "3.11"} == {"0.11"}
    for row in rows:
        pins = job["env"]["PIP_CONSTRAINT"].replace("${{ matrix.jax }}", row["jax"])
        assert f"jax=={row['jax']}.*" in (ROOT / pins).read_text().splitlines()
        assert f"Programming Language :: Python :: {row['python']}" in PROJECT["classifiers"]


def test_hooks_run_the_tools_that_make_lint_runs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"  # nothing is downloaded
    hooks = [hook["entry"].split() for hook in repo["hooks"]]
    lint = (ROOT / "Makefile").read_text().partition("\nlint:")[2].partition("\n\n")[0]
    for program, *words in hooks:
        tool = pathlib.Path(program).name
        assert program == f".venv/bin/{tool}"
        assert " ".join(["$(BIN)/" + tool, *words[:1]]) in lint


def test_extras_of_the_makefile_exist():
    extras = re.findall(r"'\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())
    assert {name for group in extras for name in group.split(",")} <= set(
        PROJECT["optional-dependencies"]
    )
