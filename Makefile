# Everything runs from a bare clone: each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.longtake-setup

.PHONY: setup demo test check format kills gpu bench long clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Longtake needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Renders a film in three shots with the embedded demo model on two workers.
demo: setup
	$(BIN)/python -m benchmarks.demo

# Unit layer, real Ray, a kill of everything. Of many like cases a few: make long has them all.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long and not ray" -n auto
	$(BIN)/python -m pytest -m "ray and not long" -n 2 --dist loadfile

# Format, lint, types, fast tests.
check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not long and not ray and not slow" -x -n auto

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# At least fifty seeded kills of real renders, and a kill at every commit point.
kills: setup
	$(BIN)/python -m pytest -m long tests/ray/test_kills.py -s

# What only a GPU can show; skipped without one.
gpu: setup
	$(BIN)/python -m pytest tests/gpu tests/accel tests/workers -k "gpu or compiled_kernel"

# What make test has no time for, make kills among it: hours.
long: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "long and not ray" -n auto
	$(BIN)/python -m pytest -m "ray and long" -s

# The figures of docs/figures.md, but those of trainings; installs what it compares with.
bench: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m benchmarks.run

clean:
	rm -rf $(VENV) demo-store demo.mp4 demo.png
