# make help says what there is. PYTHON=python3.12 picks the interpreter of a new environment.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
EXTRAS := torch,cpu,rtx,report,serving,batch,ray,kserve,dev
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help venv demo lint triton test gpu clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(INSTALLED) ## create .venv with the tested versions (once, and again after they change)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	sys.exit(0 if (3, 11) <= v <= (3, 12) else "$(PYTHON) is Python %d.%d; expected 3.11 or 3.12; \
	type: make venv PYTHON=python3.12" % v)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo '$(PYTHON) cannot create environments (no ensurepip); type: sudo apt install python3-venv' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: venv ## export SepViT-T, check it, run it on the example pictures, time it, and make a page of that
	@mkdir -p demo
	$(BIN)/sepvit-deploy export --variant t --output demo/sepvit_t.onnx
	$(BIN)/sepvit-deploy check demo/sepvit_t.onnx
	$(BIN)/sepvit-deploy predict demo/sepvit_t.onnx examples/*.jpg
	$(BIN)/sepvit-deploy bench --engine demo/sepvit_t.onnx --engine torch:t --batch 1,4 --samples 40 \
	--output demo/latency.json
	$(BIN)/sepvit-deploy report demo --html demo/report.html
	@echo
	@echo 'Written by these commands:'
	@ls -l demo
	@echo 'The command is $(BIN)/sepvit-deploy; its --help lists the rest. The report, to be opened in a browser:'
	@echo '$(CURDIR)/demo/report.html'

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

triton: venv ## fetch a real Triton server for the tests (55 MB, once, into .triton; NVIDIA's wheel, never committed)
	$(BIN)/python tests/fetch_triton.py .triton

test: venv lint triton ## lint, fetch Triton, then every test that needs no GPU
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder tests/unit tests/cpu tests/repo

gpu: $(if $(GPU_PYTHON),,venv) ## the tests and the benchmark that need a GPU; GPU_PYTHON=python3 takes an environment as it is
	@failed=0; \
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) -m pytest -s tests/gpu --require-gpu -k 'not rtx' || failed=1; \
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) -m pytest -s tests/gpu --require-gpu -k rtx || failed=1; \
	PYTHONPATH=. $(or $(GPU_PYTHON),$(BIN)/python) benchmarks/gpu.py || failed=1; \
	exit $$failed

clean: ## remove what these targets and the tools made
	rm -rf $(VENV) .triton demo dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
