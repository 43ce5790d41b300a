# Every target sets up what it needs in .venv. CONTRIBUTING.md has the same steps
# without make.

PYTHON ?= python3
ENV := .venv
RUN := $(ENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# On numpy Keras does not train: the tests of what is left.
BACKENDS ?= jax tensorflow torch numpy
TRAINING := $(filter-out numpy,$(BACKENDS))
FLOOR := .venv-floor
# Other values of TEST_SEED, for the tests that learn or sample.
SEEDS ?= 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20
# Arguments for the script, as in: make demo ARGS="--seed 1"
ARGS ?=

export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test quick flaky test-floor lint bench clean

demo: $(ENV)/demo.stamp
	KERAS_BACKEND=$${KERAS_BACKEND:-jax} $(RUN) examples/colorization.py $(ARGS)

test: $(ENV)/test.stamp
	@failed=""; \
	for backend in $(BACKENDS); do \
		echo "== $$backend"; \
		KERAS_BACKEND=$$backend $(RUN) -m pytest $(ARGS) || failed="$$failed $$backend"; \
	done; \
	if [ -n "$$failed" ]; then echo "Tests failed on:$$failed"; exit 1; fi

# On the oldest Keras that pyproject.toml promises: the package, without KerasHub and
# KerasCV, which need a newer one.
test-floor: $(FLOOR)/test.stamp
	KERAS_BACKEND=jax $(FLOOR)/bin/python -m pytest -m "not hub" \
		--ignore=tests/examples --ignore-glob="tests/docs/*_jax.py" $(ARGS)

quick: $(ENV)/test.stamp
	KERAS_BACKEND=$${KERAS_BACKEND:-jax} $(RUN) -m pytest -m "not slow and not chance" $(ARGS)

flaky: $(ENV)/test.stamp
	@failed=""; \
	for backend in $(TRAINING); do for seed in $(SEEDS); do \
		echo "== $$backend, TEST_SEED=$$seed"; \
		TEST_SEED=$$seed KERAS_BACKEND=$$backend $(RUN) -m pytest -m chance $(ARGS) \
			|| failed="$$failed $$backend/$$seed"; \
	done; done; \
	if [ -n "$$failed" ]; then echo "Tests failed on:$$failed"; exit 1; fi

lint: $(ENV)/lint.stamp
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

bench: $(ENV)/test.stamp
	$(RUN) benchmarks/step_overhead.py --backends $(TRAINING) $(ARGS)
	$(RUN) benchmarks/rewards.py --only detection panoptic colors

clean:
	rm -rf $(ENV) $(FLOOR) build dist outputs .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(ENV)/base.stamp:
	$(PYTHON) -m venv $(ENV)
	touch $@

$(ENV)/demo.stamp: pyproject.toml constraints.txt $(ENV)/base.stamp
	@echo "Installing JAX, Keras and what the demo needs into $(ENV) ..."
	$(INSTALL) --editable ".[jax,examples]"
	touch $@

$(ENV)/test.stamp: pyproject.toml constraints.txt $(ENV)/base.stamp
	@echo "Installing JAX, TensorFlow, PyTorch and the test tools into $(ENV) ..."
	$(INSTALL) --editable ".[jax,tensorflow,torch,test]"
	touch $@

$(FLOOR)/test.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FLOOR)
	keras=$$(sed -n 's/.*"keras>=\([0-9.]*\)".*/\1/p' pyproject.toml) && \
		sed "s/^keras==.*/keras==$$keras/" constraints.txt > $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(FLOOR)/constraints.txt --editable ".[jax,test-core]"
	touch $@

$(ENV)/lint.stamp: pyproject.toml constraints.txt $(ENV)/base.stamp
	$(INSTALL) ruff
	touch $@
