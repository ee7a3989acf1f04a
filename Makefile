# Two commands: `make demo` shows what Pellucid does, `make test` checks that it still does.
PYTHON ?= python3.11
VENV ?= .venv
DATA ?=
export PYTHONUNBUFFERED = 1

.PHONY: setup test demo lint clean
setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,dev]' -c constraints.txt
	touch $@

test: setup
	$(VENV)/bin/python -m pytest -n 2 -q

demo: setup
	$(VENV)/bin/pellucid demo --output demo $(if $(DATA),--data $(DATA))

lint: setup
	$(VENV)/bin/ruff check src tests benchmarks
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) demo
