# Every target sets up .venv first. A Python ≥ 3.11, make and git are all that is needed.
PYTHON ?= python3
PORT ?= 8000
PY := .venv/bin/python
STAMP := .venv/installed
# Material says at every start that MkDocs 2 will differ; constraints.txt pins MkDocs 1.
export NO_MKDOCS_2_WARNING := 1

.DEFAULT_GOAL := help
.PHONY: help serve site test update figures lint portable clean times

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /make \1	/p' Makefile | expand -t 16

# A recipe that is interrupted or fails leaves no stamp, so the next make takes it up again.
$(STAMP): pyproject.toml constraints.txt scripts/bootstrap.py
	@rm -f $@
	@command -v $(PYTHON) >/dev/null || { echo "Set-up failed: there is no $(PYTHON). Name a Python from 3.11 on: make PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) scripts/bootstrap.py --stamp $@

serve: port $(STAMP)  ## build the site and serve it with live reload; PORT=8000
	@$(PY) scripts/serve.py --port "$(PORT)"

# Before set-up, which takes minutes, and with any Python that is there.
.PHONY: port
port:
	@! command -v $(PYTHON) >/dev/null || $(PYTHON) scripts/serve.py --check --port "$(PORT)"

site: $(STAMP)  ## build the site into site/
	@$(PY) -m mkdocs build --strict

test: $(STAMP)  ## run everything: unit tests, pages, site, browser
	@$(PY) -m scripts.test $(ARGS)

update: $(STAMP)  ## run the pages and rewrite the outputs printed in them
	@$(PY) -m scripts.pages update

figures: $(STAMP)  ## write every figure as SVG and PNG into figures/
	@$(PY) -m scripts.pages figures --to figures

lint: $(STAMP)  ## check style, types and workflows
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/zizmor --offline --quiet .github
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

portable: $(STAMP)  ## run every page with the kernels of other processors
	@$(PY) -m scripts.portable

times: $(STAMP)  ## measure make test in a fresh clone and write the times into README.md
	@$(PY) -m scripts.benchmarks.readme_times

clean:  ## remove the built site, caches and the environment
	rm -rf .venv .cache site figures build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
