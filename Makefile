# demo · test · lint · bench · ui   (each sets up what it needs)

VENV := .venv
PY := $(VENV)/bin/python
# The first Python from 3.11 to 3.13 on PATH; `make PYTHON=/path/to/python` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: demo test quick lint bench ui setup runtime system-packages clean
.DEFAULT_GOAL := demo

demo: runtime  ## the paper's four rows on the demo data; FRESH=1 trains anew
	@$(PY) ray_jobs/sweep.py $(if $(FRESH),--fresh)

test: setup system-packages  ## every test but those that need a GPU
	@$(PY) -m pytest -m "not gpu"

quick: setup  ## the tests that take less than two minutes
	@$(PY) -m pytest -m "not slow and not cluster and not browser and not gpu"

lint: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

bench: runtime  ## the model's speed and memory on this machine's CPU, as ratios
	@$(PY) benchmarks/model.py

ui: runtime  ## MLflow's UI on the runs of this folder
	@$(PY) -m mlflow ui --backend-store-uri sqlite:///$(CURDIR)/results/mlflow.db --host 127.0.0.1 --port 5000

setup: $(VENV)/.dev
runtime: $(VENV)/.runtime

$(VENV)/.runtime: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 on PATH; install one, or: make PYTHON=/path/to/python"; exit 2; }
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (some minutes the first time)"
	@$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(PY) -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt -e '.[dev]'
	@touch $@

# The cluster test drives a real sshd and rsync.
system-packages:
	@if ! command -v rsync >/dev/null || ! PATH="$$PATH:/usr/sbin" command -v sshd >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq openssh-server rsync >/dev/null; \
		else echo "error: the cluster test needs sshd and rsync; install openssh-server and rsync, or: make quick"; exit 2; fi; fi

clean:  ## the environment; data and results stay
	rm -rf $(VENV)
