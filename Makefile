# The first target that needs it makes .venv and installs into it with plain pip, at the versions of constraints.txt.
PYTHON ?= python3
IN = .venv/bin

.PHONY: demo test test-thorough test-gpu on-card attack lint format types docs app tiny-base clean

demo: .venv/.core
	$(IN)/sdpersonal demo

# The tests of a file in one worker, since several files start a server for all of them. In the order of their names: else
# xdist begins with the files of many tests, and the few long ones of the app come last.
test: lint types
	$(IN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test-thorough: .venv/.all
	SDPERSONAL_THOROUGH=1 $(IN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

# The tests that need a CUDA card. They are in files that need neither Gradio nor a network.
test-gpu: .venv/.all
	$(IN)/python -m pytest -m gpu tests/models tests/training tests/evaluation

# Checks and measures everything on a CUDA card in about nine minutes: see benchmarks/on_card.py.
on-card: .venv/.all
	$(IN)/python benchmarks/on_card.py --out on-card

# Attacks the program as a stranger would: see CONTRIBUTING.md. What fails is saved in attack-failures.
attack: .venv/.all
	OMP_NUM_THREADS=1 $(IN)/python -m tools.attack files kills disk http

lint: .venv/.all
	$(IN)/ruff check
	$(IN)/ruff format --check

format: .venv/.all
	$(IN)/ruff check --fix
	$(IN)/ruff format

types: .venv/.all
	$(IN)/python -m mypy

# Copies the functions that docs/architecture.md shows from the source.
docs: .venv/.all
	$(IN)/python -m tools.code_in_docs

app: .venv/.app
	$(IN)/sdpersonal app

tiny-base: .venv/.tools
	$(IN)/python -m tools.tiny_base

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# One pip call for each; a stamp says that it ended well.
.venv/.core: WHAT = .
.venv/.app: WHAT = .[app]
.venv/.tools: WHAT = .[tools]
.venv/.all: WHAT = .[app,dev,tools]
.venv/.core .venv/.app .venv/.tools .venv/.all: pyproject.toml constraints.txt
	test -x $(IN)/python || $(PYTHON) -m venv .venv
	$(IN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt -e '$(WHAT)'
	touch $@
