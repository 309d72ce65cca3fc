# The verbs of this repository; `make` alone lists them. What they need is fetched into .tools and .venv.

PYTHON ?= python3
# More than two cores have, since many tests wait for something.
WORKERS ?= 4
RUNS ?= 20
MINUTES ?= 30
PARTS ?= 150
UV = UV_PYTHON_DOWNLOADS=never "$(CURDIR)/.tools/bin/uv"
VENV = .venv/bin
PROJECT = {{cookiecutter.project_slug}}
PYTEST = $(VENV)/python -m pytest -q
BENCHMARKS = render serving crowd workers beside distant rows streams start instructions failback image
IN_PARALLEL = -n $(WORKERS) --dist worksteal
LOCK = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" --upgrade

.DEFAULT_GOAL = help
.PHONY: pictures release help demo test rest test-all oracle chaos flaky soak lint check fix states lock bench clean

help: ## List these verbs
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' Makefile | awk -F'|' '{ printf "  make %-8s %s\n", $$1, $$2 }'

demo: .venv/ready ## Render a Space with the default answers and serve it at http://127.0.0.1:7860
	@$(VENV)/python tools/demo.py

test: .venv/ready ## Hold every promise with at least one real process (what this machine lacks is skipped by name)
	@echo "Some five minutes on two cores with all tools. make test-all runs everything."
	@$(PYTEST) $(IN_PARALLEL) -m "not thorough and not alone"

rest: .venv/ready ## Run what make test leaves out: other moments, larger numbers, measurements
	@echo "Up to ten minutes on two cores."
	@status=0; $(PYTEST) $(IN_PARALLEL) -m "thorough and not alone" || status=1; \
		$(PYTEST) -m alone || status=1; exit $$status

test-all: ## Run all tests
	@status=0; $(MAKE) --no-print-directory test || status=1; $(MAKE) --no-print-directory rest || status=1; exit $$status

oracle: .venv/ready ## Let 3,000 random models come through outages (PARTS=150 of 20), and compare PostgreSQL with what that means
	ORACLE_PARTS=$(PARTS) $(PYTEST) $(IN_PARALLEL) tests/test_oracle.py

chaos: .venv/ready ## Break each database in every way at every moment, and show what happened as a table
	$(PYTEST) $(IN_PARALLEL) tests/chaos

flaky: .venv/ready ## Run the tests of make test 20 times (RUNS=20) in random order, half of them beside a busy process
	@$(VENV)/python tools/flaky.py $(RUNS) -q $(IN_PARALLEL) -m "not thorough and not alone"

lint: .venv/ready ## Lint and check types
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy

check: lint ## Lint, types and quick tests: the loop while working
	@$(PYTEST) $(IN_PARALLEL) -m "not slow and not thorough and not alone"

fix: .venv/ready ## Format, and mend what the linter can mend
	$(VENV)/ruff format
	$(VENV)/ruff check --fix

states: .venv/ready ## Print the table of states of the database's lifecycle, and write it into the runtime's README
	@PYTHONPATH="$(PROJECT)" $(VENV)/python -m tools.states
	@PYTHONPATH="$(PROJECT)" $(VENV)/python -m tools.states --write

lock: .tools/bin/uv ## Pin the newest versions that the ranges allow, with hashes
	cd "$(PROJECT)" && $(LOCK) requirements.txt --output-file requirements.lock
	$(LOCK) --constraint "$(PROJECT)/requirements.lock" requirements-dev.txt --output-file requirements-dev.lock

release: .venv/ready ## Tag VERSION=1.2.0 with its section of CHANGELOG.md, and push it
	@$(VENV)/python tools/release.py $(VERSION)

pictures: .venv/ready ## Make the README's pictures anew, out of a real outage (chromium is needed)
	@$(VENV)/python tools/pictures.py

bench: .venv/ready ## Measure what must be fast beside what others take: about forty minutes, during which the machine does nothing else
	@rm -f test-artifacts/bench.txt; status=0; \
	for part in $(BENCHMARKS); do printf '\n%s\n' $$part; $(VENV)/python -m benchmarks.$$part || status=1; done; \
	echo; cat test-artifacts/bench.txt; exit $$status

soak: .venv/ready ## Put the app under load and faults for half an hour (MINUTES=30), and watch what it holds
	SOAK_MINUTES=$(MINUTES) $(VENV)/python -m pytest -s tests/test_soak.py

clean: ## Remove what these verbs fetched and rendered
	rm -rf .tools .venv .demo

# One line for each thing that a machine may lack, instead of a traceback later.
.tools/bin/uv:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or later is needed, and there is no $(PYTHON)."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, and $(PYTHON) is older. Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Fetching uv into .tools, once ..."
	@$(PYTHON) -m venv --clear .tools
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9

.venv/ready: requirements-dev.lock | .tools/bin/uv
	@echo "Installing the requirements into .venv, once; up to a minute ..."
	@rm -rf .venv
	@$(UV) venv --quiet --python $(PYTHON) .venv
	@$(UV) pip install --quiet --python .venv --require-hashes --requirement requirements-dev.lock
	@touch $@
