# Short names for the scripts; each installs what the build needs.
.PHONY: help setup build demo test verify format

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

setup: ## install what the build needs
	@scripts/setup.sh

build: setup ## build all programs
	cargo build --locked --workspace --bins

demo: ## three servers, real services, real faults, a timeline
	@scripts/demo.sh

test: ## all tests, doc tests included
	@scripts/test.sh tests doctests

verify: ## everything that continuous integration runs
	@scripts/test.sh

format: ## format the code
	cargo fmt --all
