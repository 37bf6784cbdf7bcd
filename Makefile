# Run `make` to list the targets.  Each one sets up what it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

BIN := .venv/bin
export SETUP_APT

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

.PHONY: setup
setup: ## install the Debian packages and .venv; done in a second if nothing is missing
	@tools/setup

.PHONY: demo
demo: setup ## see the whole story on this machine, with software TPMs
	@./tools/demo

.PHONY: console-demo
console-demo: setup ## see the console on this machine, over a fleet of software machines in every state, until Ctrl-C
	@exec $(BIN)/python -m tests.console.demo

.PHONY: test
test: lint ## lint and run every test but the speed tests, the boots of whole machines last; under an hour
	@echo 'Every test but those that boot or install whole systems, which come afterwards.'
	$(in-memory) $(BIN)/pytest --numprocesses auto -m 'not bench and not boot'
	$(call run-boots,$(every-boot))

.PHONY: test-boot
test-boot: setup ## boot encrypted virtual machines and install the packages, as root; half an hour
	$(call run-boots,$(every-boot))

.PHONY: test-release
test-release: setup ## make and install packages, repository and image of a release for both Debians, as root; a quarter of an hour
	$(call run-boots,-m release)

# Neighbors in a file share what they boot, so each process begins with a part of its own.
boots := $(BIN)/pytest --verbose --numprocesses auto --dist worksteal --durations 10 tests

# Releases have packages for two Debians and two architectures; most of it says nothing new about a change.
every-boot := -m 'boot and not release'

define run-boots
@[ "$$(id -u)" -eq 0 ] || { echo 'The boots make root file systems, so they need root. make check does not.' >&2; exit 1; }
@echo 'Booting and installing whole systems. Without images in the cache the first result takes some minutes.'
@$(boots) $(1)
endef

# Files of tests are in memory where it has room; those of whole systems are not.
in-memory = PYTEST_DEBUG_TEMPROOT=$$($(BIN)/python -m tests.scratch)

# Twice as many processes as processors: a test waits for other processes and for real time during half of its life.
# Three on two processors leave a fifth of these idle, and a fifth process gains nothing.  With worksteal each begins
# with a part of its own, so the tests of a file mostly share what the file sets up.
check-processes := $(shell echo $$(($$(nproc) * 2)))

# mypy is one process: beside the tests, and not before them, it leaves no processor idle.
.PHONY: check
check: setup ## lint and run the quick tests, in two and a half minutes on two idle processors
	@$(MAKE) --no-print-directory --jobs=2 lint quick-tests

.PHONY: quick-tests
quick-tests: setup ## run the quick tests alone, without linting
	$(in-memory) $(BIN)/pytest --numprocesses $(check-processes) --dist worksteal --durations 15 -m 'not boot and not bench and not slow'

.PHONY: lint
lint: setup ## check style, types and shell scripts; changes nothing
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/mypy --no-error-summary
	@$(MAKE) --no-print-directory build/shell-scripts

# Looking at a script follows what it sources, which takes two seconds of a processor for some, and shfmt takes five for
# all: done again if one changed.
ifneq ($(filter build/shell-scripts,$(MAKECMDGOALS)),)
build/shell-scripts: .shellcheckrc .editorconfig $(shell tools/shell-scripts)
	tools/shell-scripts | xargs --no-run-if-empty --max-args 1 --max-procs "$$(nproc)" shellcheck
	tools/shell-scripts | xargs --no-run-if-empty $(BIN)/shfmt --diff
	@mkdir -p build && touch $@
endif

.PHONY: fmt
fmt: setup ## format Python and shell, and fix what ruff can fix
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	tools/shell-scripts | xargs --no-run-if-empty $(BIN)/shfmt --write

.PHONY: test-console
test-console: setup ## test the console in a real browser with a software TPM and the real pin, as `make test` does; four minutes
	$(in-memory) $(BIN)/pytest --numprocesses auto --durations 10 tests/console

.PHONY: test-nix
test-nix: setup ## test the NixOS modules, as `make test` does; NIXPKGS or NIXPKGS_LIB name a real nixpkgs
	$(BIN)/pytest --numprocesses auto tests/nix

.PHONY: deb
deb: setup ## build Debian packages into build/deb, as root; SUITE=bookworm or trixie, ARCH=amd64 or arm64
	tools/build-deb $(if $(SUITE),--suite $(SUITE)) $(if $(ARCH),--arch $(ARCH))

.PHONY: install-server
install-server: ## install the server and what it needs to run, in PREFIX=/usr/local; not for development
	@tools/install-server $(PREFIX)

.PHONY: release
release: setup ## build everything of a release into build/release, as root; RELEASE_KEY=FILE signs it
	tools/release/all

.PHONY: test-lowest
test-lowest: setup ## run the quick tests with the lowest version of each library that pyproject.toml allows
	tools/release/test-lowest

.PHONY: test-fresh
test-fresh: ## run CI in a new minimal Debian root under /var/tmp, of SUITE=bookworm or trixie; needs root and mmdebstrap
	SUITE=$(SUITE) tools/fresh-root

# Keylime is measured for scale only, so it is no dependency, and has a place of its own.
keylime := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tang-attest/keylime-7.14.3

.PHONY: bench
bench: setup ## measure this server beside Debian's tangd, as root, in twenty minutes; writes build/bench.json
	@$(MAKE) --no-print-directory $(keylime)/bin/python || echo 'Keylime cannot be installed here, so it is not measured.' >&2
	$(BIN)/python -m tests.bench --keylime $(keylime)/bin/python

$(keylime)/bin/python:
	$(BIN)/uv venv --quiet $(keylime)
	$(BIN)/uv pip install --quiet --python $@ keylime==7.14.3 cryptography lark packaging psutil pyasn1 pyasn1-modules \
		pyyaml requests || { rm -rf $(keylime); exit 1; }

.PHONY: bench-page
bench-page: setup ## put the figures of the last make bench into docs/performance.md
	$(BIN)/python -m tests.bench.page build/bench.json

.PHONY: bench-boot
bench-boot: setup ## measure a boot with this pin beside the tang pin, as root, for make bench to show; ten minutes
	$(BIN)/python -m tests.boot.bench

.PHONY: fuzz
fuzz: setup ## fuzz every parser, SECONDS=180 each, or TARGET=NAME alone; build/fuzz keeps what it learns and finds
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(addprefix --target ,$(TARGET))

# SECONDS is also the shell's own, so only one that make was told counts.
FUZZ_SECONDS := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),180)

.PHONY: model
model: setup ## check the protocol's model with spin, and that each of its mutants breaks a property; two minutes
	$(BIN)/python -m tools.check_model

.PHONY: simulate
simulate: setup ## send a fleet through a kernel update, a bad image and a reboot storm; DEVICES=1000 machines, pictures in build
	$(BIN)/python -m tests.simulate --devices $(or $(DEVICES),1000)

.PHONY: screenshots
screenshots: setup ## take the pictures of the console for the documents, docs/pictures; look at them before you commit
	$(BIN)/python -m tests.console.pictures

.PHONY: docs
docs: setup ## write the documents that are made from the program: errors, settings, commands, the manual page
	$(BIN)/python -m tools.generate_docs

.PHONY: vectors
vectors: setup ## write the test vectors of the protocol, vectors/*.json, the same bytes each time
	$(BIN)/python -m tools.generate_vectors

.PHONY: conformance
conformance: setup ## run the conformance kit against this server and pin, and against mutants of them; five minutes
	$(BIN)/pytest --numprocesses auto tests/conformance

.PHONY: lock
lock: setup ## resolve pyproject.toml again into requirements*.lock; LOCK_FLAGS=--upgrade takes new versions
	$(compile) --extra dev --group build $(LOCK_FLAGS) --output-file requirements.lock pyproject.toml
	$(compile) --constraints requirements.lock --output-file requirements-server.lock pyproject.toml
	$(compile) --constraints requirements.lock --group build --output-file requirements-build.lock
	$(compile) --constraints requirements.lock --group release --output-file requirements-release.lock

compile := UV_CUSTOM_COMPILE_COMMAND='make lock' $(BIN)/uv pip compile --quiet --universal --generate-hashes \
	--no-emit-index-url --python-version 3.11

.PHONY: clean
clean: ## remove everything that a target made, .venv too
	rm -rf .venv build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
