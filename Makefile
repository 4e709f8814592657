# Two commands from nothing but Python 3.11+, make and a package index: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.limbeck-installed
DEMO ?= demo

.PHONY: setup demo finding test browser lint format docs site lock audit sbom clean

setup: $(STAMP)

# Every package by version and hash; PyTorch, whose builds differ by device, by version.
$(STAMP): pyproject.toml constraints.txt requirements.lock
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "limbeck and its packages, PyTorch among them, are installed into $(VENV): some minutes, without a word from pip"
	$(PIP) --require-hashes --no-deps --requirement requirements.lock
	$(PIP) --constraint constraints.txt torch
	$(PIP) --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(BIN)/limbeck study run quickstart --out $(DEMO) --overwrite

# A page of docs/results again, `make finding NAME=trrd`: its study, which goes on where it was, then its table and verdict.
finding: setup
	@test -n "$(NAME)" || { echo "NAME must be a page of docs/results, received none: make finding NAME=trrd"; exit 2; }
	$(BIN)/limbeck study run $(NAME) --out runs/$(NAME)
	$(BIN)/python examples/findings $(NAME) runs/$(NAME)

test: setup browser lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Pages are tested in Chromium. Where there is none, root on Debian installs it; elsewhere those tests are skipped, with a sentence.
browser:
	@command -v chromium || command -v chromium-browser || command -v google-chrome || \
		{ test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq && apt-get install -y -qq chromium > /dev/null; } || \
		echo "no Chromium: tests of pages in a browser are skipped"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup
	$(BIN)/limbeck objectives --markdown > docs/methods.md
	$(BIN)/limbeck study schema --markdown > docs/study-keys.md

site: setup
	$(PIP) --constraint constraints.txt --editable ".[docs]"
	mkdir -p docs/generated
	$(BIN)/limbeck metrics --markdown > docs/generated/metrics.md
	$(BIN)/python -m typer limbeck.cli utils docs --name limbeck --title "The command line" --output docs/generated/cli.md
	$(BIN)/mkdocs build --strict

# PyTorch and what its builds for GPUs bring with them are not in the lock.
OF_TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc cuda-runtime \
	cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

lock: setup
	$(PIP) uv
	$(BIN)/uv pip compile --quiet pyproject.toml --extra dev --extra build --constraint constraints.txt --generate-hashes --universal \
		--python-version 3.11 $(addprefix --no-emit-package ,$(OF_TORCH)) --no-header --no-annotate --output-file requirements.lock

audit: setup
	$(PIP) pip-audit
	$(BIN)/pip-audit --strict --requirement requirements.lock --require-hashes --disable-pip

sbom: setup
	$(PIP) cyclonedx-bom
	mkdir -p dist
	$(BIN)/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-file dist/limbeck.cdx.json

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
