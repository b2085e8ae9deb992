# make figures   run every notebook on the built-in data and draw the figures (SEEDS=reference: figures/)
# make site      the executed walk as a website, in site/_build/html (runs what it lacks)
# make slides    a deck of slides for each notebook with marked cells, in site/_build/slides
# make quick     the tests that take a moment
# make test      the tests, nbval on the first notebooks, the notebooks in a real browser
# make slow      what make test leaves out: every network and method at its real size
# make ui        the latter alone
# make lab       JupyterLab on the notebooks (COPY=1: on a copy in walk/, COPY=path: in that folder)
# make reference train what benchmarks/reference.csv lacks
# make clean     forget .venv and what tools left; runs and figures stay
#
# Each sets .venv up, once. VENV=path uses another environment, as it is if it has what kdkit needs.

VENV = .venv
PYTHON = python3
PY = $(abspath $(VENV))/bin/python
# The committed figures are those of the reference; any other run draws into figures/local/.
FIGURES = $(if $(filter reference,$(SEEDS)),KDKIT_FIGURES="$${KDKIT_FIGURES:-$(CURDIR)/figures}")
# Of the reference, too, where SEEDS names nothing else.
SITE = $(if $(SEEDS),KDKIT_SEEDS=$(SEEDS)) $(PY) site/build.py
# Every extra of pyproject.toml, as pip takes them, and a check that all they list is installed.
EXTRAS = $$($(PYTHON) -c "import tomllib; \
  print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies'], sep=',')")
HAS_ALL = import re, tomllib; from importlib.metadata import version; \
  project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  lists = [project['dependencies'], *project['optional-dependencies'].values()]; \
  [version(re.match(r'[\w-]+', need)[0]) for needs in lists for need in needs]
SMOKE = KDKIT_PRESET=smoke KDKIT_BATCH=1 OMP_NUM_THREADS=1
SHARED = tmp=$$(mktemp -d) && trap 'rm -rf "$$tmp"' EXIT && \
         export KDKIT_TEST_FOLDER="$${KDKIT_TEST_FOLDER:-$$tmp}"
NBVAL = -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=600
# This checkout's kdkit, in notebooks' kernels as well, whatever the environment holds.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))

.PHONY: figures site slides quick test slow ui lab reference clean ready

figures: ready
	$(FIGURES) $(PY) -m kdkit figures $(if $(SEEDS),--seeds $(SEEDS))

site: ready
	$(SITE)

slides: ready
	$(SITE) slides

quick: ready
	@$(SHARED) && $(PY) -m pytest tests -n 2 --dist loadfile -m "not slow and not long"

slow: ready
	@$(SHARED) && $(PY) -m pytest tests -n 2 --dist loadfile -m slow

# One store for all, so that each smoke run is trained once. Two workers, also where there are more
# cores: the networks of real size take up to 6 GB each.
test: ready
	@$(SHARED) && $(PY) -m ruff format --check . && $(PY) -m ruff check . && \
	  $(PY) -m pytest tests -n 2 --dist loadfile -m "not slow" && \
	  $(SMOKE) KDKIT_RUNS="$$KDKIT_TEST_FOLDER/runs" KDKIT_FIGURES="$$KDKIT_TEST_FOLDER/figures" \
	  $(PY) -m pytest $(NBVAL) notebooks/0[0-2]_*.ipynb && \
	  $(MAKE) --no-print-directory ui

# Playwright and nbval do not share a process. Without a browser: one line, and with CI=true a failure.
# Some widgets are alone in the machine, because the report says how fast they answer.
ui: ready
	@if why=$$($(PY) tests/ui/install.py); then $(SHARED) && \
	  $(PY) -m pytest tests/ui -n 2 -m "not alone" && $(PY) -m pytest tests/ui -m alone; else \
	  echo "kdkit: not tested in a real browser: $$why" >&2; test "$(CI)" != true; fi

lab: ready
	$(PY) -m $(if $(COPY),kdkit lab "$(if $(filter-out 1,$(COPY)),$(COPY),walk)",\
	  jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks)

reference: ready
	$(PY) benchmarks/reference.py

clean:
	rm -rf .venv build dist site/_build kdkit.egg-info .pytest_cache .ruff_cache
	find kdkit tests benchmarks notebooks -name __pycache__ -type d -prune -exec rm -rf {} +

ifeq ($(VENV),.venv)
ready: .venv/.ready
else
ready:
	@$(PY) -c "$(HAS_ALL)" 2>/dev/null || $(MAKE) --no-print-directory $(abspath $(VENV))/.ready
endif

# The stamp: an environment is set up once, and again when pyproject.toml changes.
%/.ready: pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { echo "kdkit:" \
	  "needs Python 3.11 or newer, $(PYTHON) is" \
	  "$$($(PYTHON) -V 2>/dev/null || echo missing); PYTHON=path names another" >&2; exit 1; }
	@test -x $*/bin/python || $(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { echo "kdkit:" \
	  "$(PYTHON) lacks the venv module (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@test -x $*/bin/python || $(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS)]"
	@touch $@
