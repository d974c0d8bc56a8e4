# `make train` and `make test` need only Python 3.11, 3.12 or 3.13: they create .venv and install the exact versions in
# the lock files. To choose the interpreter: make PYTHON=python3.12 ...

PYTHON =
TRAIN_ARGS =
PYTEST_ARGS =
export PYTHONDONTWRITEBYTECODE = # the installation compiles nothing, so the first import must store the bytecode

VENV = .venv
RUN_ENVIRONMENT = @.ci/environment $(VENV) requirements.lock "$(PYTHON)"
DEV_ENVIRONMENT = @.ci/environment $(VENV) requirements-dev.lock "$(PYTHON)"
COMPILE = uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

.PHONY: help environment train test test-all lint types lock clean
.NOTPARALLEL:

help:
	@echo "make environment create .venv with the packages that the commands need"
	@echo "make train       train the quickstart model into runs/quickstart, or continue where it stopped"
	@echo "make test        run the tests; PYTEST_ARGS='-k packing' selects some of them"
	@echo "make test-all    run the tests, including the variants marked exhaustive"
	@echo "make lint        check formatting and style"
	@echo "make types       check types"
	@echo "make lock        update requirements*.lock to the newest versions within the bounds"
	@echo "make clean       remove the environment and caches; runs/ stays"

environment:
	$(RUN_ENVIRONMENT)

train:
	$(RUN_ENVIRONMENT)
	@$(VENV)/bin/python train.py --config=configs/quickstart.py --workdir=runs/quickstart $(TRAIN_ARGS)

# All tests of a file run in one process, where they share compiled programs and trained models. tests/conftest.py
# puts the longest files first.
test test-all:
	$(DEV_ENVIRONMENT)
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	    $(if $(filter test,$@),-m "not exhaustive") $(PYTEST_ARGS)

lint:
	$(DEV_ENVIRONMENT)
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/python -m ruff check .

types:
	$(DEV_ENVIRONMENT)
	@$(VENV)/bin/python -m mypy

# uv, unlike pip, writes a single lock file for all Python versions and platforms. It is not installed into .venv. Its
# own lock format is not used, because that embeds the address of the package index.
lock:
	@set -e; directory=$$(mktemp -d); trap 'rm -rf "$$directory"' EXIT; \
	if ! command -v uv >/dev/null; then \
	    $(or $(PYTHON),python3) -m venv "$$directory"; "$$directory/bin/python" -m pip -qq install uv; \
	    PATH="$$directory/bin:$$PATH"; \
	fi; \
	$(COMPILE) requirements.txt --output-file requirements.lock >/dev/null; \
	for name in dev cuda tpu; do \
	    $(COMPILE) requirements-$$name.txt --constraints requirements.lock --output-file requirements-$$name.lock >/dev/null; \
	done; \
	$(COMPILE) --no-deps requirements-peers.txt --output-file requirements-peers.lock >/dev/null; \
	git --no-pager diff --stat -- 'requirements*.lock'

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
