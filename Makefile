# Two commands from nothing but Python 3.11+, make and a package index: `make demo` and `make test`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.limbeck-installed
DEMO ?= demo

.PHONY: setup demo test browser lint format docs site clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "limbeck and its packages, PyTorch among them, are installed into $(VENV): some minutes, without a word from pip"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/limbeck study run quickstart --out $(DEMO) --overwrite

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	mkdir -p docs/generated
	$(BIN)/limbeck metrics --markdown > docs/generated/metrics.md
	$(BIN)/python -m typer limbeck.cli utils docs --name limbeck --title "The command line" --output docs/generated/cli.md
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
