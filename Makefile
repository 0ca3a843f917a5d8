# SPDX-License-Identifier: GPL-3.0-or-later
# `make site` and `make test` set up all they need in .venv; nothing asks a question.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV ?= .venv
INVENTORY ?= inventories/local
# Give more to the tools: make site ARGS='--check --diff', make test ARGS='-k allocate'
ARGS ?=

export VENV := $(abspath $(VENV))
# Activate without activating: what tests and playbooks call is found here first.
export PATH := $(VENV)/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg

##@ Run

.PHONY: site
site: ## Bring up the local environment (INVENTORY=inventories/local, ARGS=...)
	@.ci/venv site
	@ansible-playbook -i $(INVENTORY) site.yml $(ARGS)

# Where machines are to run: the inventory that is named, or the one of this computer with QEMU.
MACHINES_INVENTORY = $(patsubst inventories/local,inventories/qemu,$(INVENTORY))

.PHONY: setup
setup: ## Install what machines need on their hosts (INVENTORY=inventories/qemu, ARGS=--ask-become-pass)
	@.ci/venv site
	@ansible-playbook -i $(MACHINES_INVENTORY) playbooks/host_setup.yml $(ARGS)

.PHONY: verify
verify: ## Say what those hosts have and lack; changes nothing (INVENTORY=inventories/qemu)
	@.ci/venv site
	@ansible-playbook -i $(MACHINES_INVENTORY) playbooks/host_setup.yml --tags host_setup_verify $(ARGS)

##@ Templates of cloud-init

# What the targets below work on: TEMPLATE=python, ENV=.env
TEMPLATE ?=
ENV ?= .env

.PHONY: list-templates
list-templates: ## Name the templates of machines and what they set up
	@python3 .ci/template list

.PHONY: show-template
show-template: ## Print a template, its parts and its values (TEMPLATE=python)
	@python3 .ci/template show "$(TEMPLATE)"

.PHONY: copy-template
copy-template: ## Copy a template to cloud-init/ and an .env to fill in (TEMPLATE=python)
	@python3 .ci/template copy "$(TEMPLATE)"

.PHONY: render-template
render-template: ## Fill a template, check it, write cloud-init/NAME/user-data and more (TEMPLATE=python ENV=.env)
	@.ci/venv site
	@python .ci/template render "$(TEMPLATE)" "$(ENV)"

##@ Check

.PHONY: test
test: dev ## Unit and integration tests (ARGS='-k allocate -x')
	@pytest $(ARGS)

.PHONY: lint
lint: dev ## Ruff, mypy, import-linter, yamllint, ansible-lint, changelog, generated docs
	@.ci/lint

.PHONY: sanity
sanity: dev ## ansible-test sanity on a copy of the committed files (ARGS='--python 3.13 --test pep8')
	@.ci/sanity $(ARGS)

.PHONY: smoke
smoke: dev ## Build and install the collection, then use it on the oldest and the newest ansible-core
	@.ci/smoke $(ARGS)

.PHONY: system
system: dev ## Tests on real systemd hosts and real services; wants root and podman
	@pytest tests/system $(ARGS)

.PHONY: images
images: dev ## Build the images that those tests use, once: systemd hosts, and a machine for QEMU
	@python -m tests.system.lab image
	@python -m tests.system.vm

.PHONY: benchmarks
benchmarks: dev ## Compare with other tools; prints ratios (ARGS='claims supervisors')
	@tests/benchmarks/run $(ARGS)

##@ Make

.PHONY: docs
docs: dev ## Write docs/modules/*.md, docs/cli.md and the table of docs/egress.md from what they describe
	@python tests/tools/module_docs.py
	@python tests/tools/cli_docs.py
	@python tests/tools/egress_attacks.py
	@python tests/tools/egress_docs.py

.PHONY: format
format: dev ## Let ruff order imports and lay out code
	@ruff check --fix --quiet . ; ruff format .

.PHONY: build
build: dev ## Build the collection's tarball and the wheel into dist/
	@ansible-galaxy collection build --force --output-path dist
	@pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

.PHONY: dev
dev: ## Set up .venv with every development tool
	@.ci/venv test

.PHONY: clean
clean: ## Remove .venv, caches and build results; not your state, nor running processes
	@rm -rf $(VENV) .cache build dist tests/output .ansible .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find src plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help
help: ## Show this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
