# make demo        a first run: environment, a small dataset, participant and group level, and where the results are
# make test        environment and tests; BIDSSEG_TESTDATA names the folder of the real data, if there is one
# make lint        style, types, the order of imports, and words
# make docs        the site, in build/site; a broken link or a missing description fails
# make image       the Docker image, with docker or, where no daemon answers, with buildah
# make image-test  run that image on two scans: read-only, no network, no home, any user
# make models      every shipped model from the data: DATA=... OUT=... and, to stop cleanly after so many, MINUTES=...
# make screenshots the pictures of the documentation, of the demonstration's pages; needs Chromium
# make boutiques   the descriptors of the command line in boutiques/
# make venv        the environment alone (.venv); later runs need no network
#
# PYTHON=...    the Python (3.11 or newer) to make the environment with
# PIP_FLAGS=... for the first installation, e.g. "--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
PY := .venv/bin/python
STAMP := .venv/installed
DEMO := demo
DOCS := .venv-docs
PROSE := bidsseg benchmarks docs README.md CONTRIBUTING.md SECURITY.md

.PHONY: demo test lint docs image image-test models screenshots boutiques venv clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(PY) benchmarks/demo_dataset.py $(DEMO)/bids
	$(PY) run.py $(DEMO)/bids $(DEMO)/out participant group
	@echo
	@echo "label map:  $$(ls $(CURDIR)/$(DEMO)/out/sub-template/anat/*_seg-BrainCOLOR_*_dseg.nii.gz)"
	@echo "table:      $$(ls $(CURDIR)/$(DEMO)/out/group_seg-BrainCOLOR_*_morph.tsv)"
	@echo "page:       $$(ls $(CURDIR)/$(DEMO)/out/sub-template.html)"

test: $(STAMP)
	$(PY) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) -m codespell_lib $(PROSE)

docs: $(DOCS)/installed
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/python -m mkdocs build --strict

image:
	docker/build.sh bidsseg $(VARIANT)

image-test: $(STAMP)
ifdef BIDSSEG_TESTDATA
	docker/test.sh $(BIDSSEG_TESTDATA)/ds002748 01 07
else
	$(PY) benchmarks/demo_dataset.py $(DEMO)/bids
	docker/test.sh $(DEMO)/bids template tilted
endif

models: $(STAMP)
	PYTHON=$(CURDIR)/$(PY) benchmarks/models.sh $(DATA) $(OUT) $(MINUTES)

screenshots: demo
	$(PY) run.py $(DEMO)/bids $(DEMO)/out participant group --viewer
	$(PY) docs/screenshots.py $(DEMO)/out

boutiques: $(STAMP)
	$(PY) run.py --bids-exec-spec > boutiques/bidsseg.json
	$(PY) run.py --bids-exec-spec longitudinal > boutiques/bidsseg_longitudinal.json
	$(PY) run.py --bids-exec-spec evaluate > boutiques/bidsseg_evaluate.json
	$(PY) run.py --bids-exec-spec train > boutiques/bidsseg_train.json

venv: $(STAMP)

$(STAMP): requirements.lock pyproject.toml | $(PY)
	$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(PY):
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or give PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; echo "On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }

# An environment of its own: the site needs neither torch nor the tests' packages.
$(DOCS)/installed: docs/requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it, or give PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(DOCS) || { rm -rf $(DOCS); echo "On Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r docs/requirements.txt
	@touch $@

clean:
	rm -rf $(DEMO) build *.egg-info .pytest_cache .ruff_cache .mypy_cache
