# The environment, the first picture and the checks.
#
# Needs Python 3.10 to 3.13 and PyPI. The first call of a target makes the environment it needs; later calls reuse it
# until pyproject.toml or constraints.txt changes.

PYTHON ?= python3
VENV   ?= .venv
ARGS   ?=
# Of `make wheel`.
CMAKE_ARGS ?=

BIN     := $(VENV)/bin
# Byte-compiling all of torch takes longer than unpacking it; Python compiles what is imported, when it is.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo install test lint format typecheck wheel clean

help:
	@echo 'make demo       environment, model, and a picture of class 88'
	@echo 'make install    environment with all that the tests and checks need'
	@echo 'make test       all tests; ARGS="-m '"'not slow'"'" or any other argument of pytest'
	@echo 'make lint       ruff: rules and formatting'
	@echo 'make format     ruff: mend both where it can'
	@echo 'make typecheck  mypy'
	@echo 'make wheel      dist/: a wheel with the CUDA library inside; needs nvcc, and TensorRT'"'"'s headers for the plugins:'
	@echo '                CMAKE_ARGS="-DTENSORRT_ROOT=/path/to/sdk" or any other argument of cmake'
	@echo 'make clean      remove build products and caches; $(VENV), runs/ and bundles/ stay'
	@echo
	@echo 'PYTHON=python3.12  makes the environment with that interpreter (now: $(PYTHON))'
	@echo 'VENV=folder        puts it there (now: $(VENV))'
	@echo 'PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu'
	@echo '                   spares a machine without a GPU the gigabytes of CUDA that come with torch on Linux'

demo: $(VENV)/.installed-demo
	$(BIN)/actvar-trt generate --class 88

install: $(VENV)/.installed-dev

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

typecheck: $(VENV)/.installed-dev
	$(BIN)/mypy

# Of the build tree only the libraries go into the wheel; setup.py says which.
wheel: | $(VENV)/.created
	cmake -S . -B build $(CMAKE_ARGS)
	cmake --build build --parallel $$(nproc)
	ACTVAR_WHEEL_LIBRARIES='$(CURDIR)/build/plugins' \
	  $(BIN)/python -m pip wheel --disable-pip-version-check --no-deps -w dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# An existing environment is kept as it is; one whose making broke off, without pip, is made again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo '$(PYTHON) is not Python 3.10 to 3.13: name one that is, as in make PYTHON=python3.12' >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
	  { echo 'no environment could be made (on Debian and Ubuntu: apt install python3-venv)' >&2; exit 1; }
	@touch $@

$(VENV)/.installed-demo: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) -e '.[cpu]'
	@touch $@

# dev holds what demo needs, so the demo need not install again.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/.created
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed-demo
