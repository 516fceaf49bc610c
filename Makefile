# Everything a fresh machine needs is set up by the first target that needs it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test check bench clean

demo: $(VENV)/.ready
	@$(BIN)/python -m weir.demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/layers.py

bench: $(VENV)/.ready-dev
	$(BIN)/python bench/host_time.py
	$(BIN)/python bench/cpu.py
	$(BIN)/python bench/prefix.py
	$(BIN)/python bench/overhead.py

# PyTorch's CPU build where there is no NVIDIA driver: the CUDA build is gigabytes larger.
$(VENV)/.ready: pyproject.toml scripts/install.py
	$(PYTHON) scripts/install.py $(VENV)
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(PYTHON) scripts/install.py $(VENV) dev
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
