"""What the tests of the training script share: a tiny run, its images, and how to start it in this process."""

from pathlib import Path

import numpy as np
import PIL.Image
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import save_file

from ddim_scheduler.evaluation import DigitClassifier
from ddim_scheduler.training.train_unconditional import main

EXAMPLES = Path(__file__).parents[1] / "examples"
TINY = [
    *("--resolution", "16", "--block_out_channels", "8", "16", "--layers_per_block", "1", "--attention_resolutions"),
    *("--train_batch_size", "4", "--learning_rate", "1e-3", "--lr_warmup_steps", "2"),
    *("--eval_batch_size", "4", "--ddpm_num_inference_steps", "3", "--mixed_precision", "no"),
]


def write_images(folder: Path, number: int = 16):
    """Gray images of 20x24 pixels, in two sub-folders."""
    rng = np.random.default_rng(0)
    for k in range(number):
        path = folder / str(k % 2) / f"{k}.png"
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(rng.integers(256, size=(20, 24), dtype=np.uint8)).save(path)


def write_classifier(path: Path) -> Path:
    """A network for `--eval_features digits`, with random weights."""
    torch.manual_seed(0)
    save_file(DigitClassifier().state_dict(), path)
    return path


def forget_accelerator():
    for state in (AcceleratorState, GradientState, PartialState):
        state._shared_state.clear()


def train(*arguments) -> float:
    forget_accelerator()
    return main([*TINY, *map(str, arguments)])
