# make demo    draw a data set, train, publish, serve, classify      (DATA=<folder> WEIGHTS=<file|imagenet|none>)
# make test    the tests
# make lint    ruff and mypy
# make protos  generate the gRPC code again from protos/
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# Images of Python set it; each of the many processes of the tests would compile torch's sources anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-slow lint protos clean

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py $(if $(DATA),--data "$(DATA)") $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# Each file stays in one process, for its fixtures; they begin in order (tests/conftest.py).
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed
	$(PYTEST)

test-slow: $(VENV)/.installed
	$(PYTEST) -m "slow or not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

protos: $(VENV)/.installed
	$(BIN)/uv run --quiet --isolated --no-project --python '>=3.11,<3.14' --with-requirements protos/requirements.txt protos/generate.py

# uv installs the CUDA builds of torch in about a minute. uv needs no Python packages of its own.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Pawprint needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^uv==' constraints.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraints constraints.txt --editable '.[train,dev,release]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
