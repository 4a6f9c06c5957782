# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
Trains a small classifier of digits, whose penultimate layer gives `evaluate.py` its features.

    python examples/train_classifier.py data/digits --output outputs/digits-classifier.safetensors

ImageNet features see little in digits. The folder holds `train/` and `test/`, each with one folder of images per class.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from ddim_scheduler.command_line import Parser, run
from ddim_scheduler.evaluation import DigitClassifier

NUM_CLASSES = 10
BATCH_SIZE = 100


def load_digits(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, uint8 (N, 1, H, W), and labels (N,) from one folder per class."""
    paths = [(path, label) for label in range(NUM_CLASSES) for path in sorted((folder / str(label)).glob("*.png"))]
    if not paths:
        raise ValueError(f"`data_dir` holds no digits: {folder}/0/*.png and so on")
    images = [np.asarray(PIL.Image.open(path).convert("L")) for path, _ in paths]
    for image, (path, _) in zip(images, paths, strict=True):
        if image.shape != images[0].shape:
            raise ValueError(f"{path} is of shape {image.shape}, others of {images[0].shape}.")
    return torch.from_numpy(np.stack(images))[:, None], torch.tensor([label for _, label in paths])


def main(argv: list[str] | None = None) -> float:
    """Trains, saves, and returns the accuracy on the test images."""
    parser = Parser(
        description="Train a small classifier of digits, for the features of evaluate.py.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data_dir", type=Path, help="folder with train/ and test/, one folder per class in each")
    parser.add_argument("--output", type=Path, default=Path("outputs/digits-classifier.safetensors"), help="weights")
    parser.add_argument("--num_epochs", type=int, default=20, help="passes over the data")
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="peak learning rate of Adam")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and shifts")
    args = parser.parse_args(argv)
    if args.output.is_dir():
        parser.error(f"--output is a folder: {args.output}")
    if args.num_epochs < 1 or not args.learning_rate > 0:
        parser.error("--num_epochs and --learning_rate must be positive")
    train_images, train_labels = load_digits(args.data_dir / "train")
    test_images, test_labels = load_digits(args.data_dir / "test")
    if len(train_images) < BATCH_SIZE:
        raise ValueError(f"`data_dir` must hold {BATCH_SIZE} training images at least, but holds {len(train_images)}.")

    torch.manual_seed(args.seed)
    classifier = DigitClassifier()
    batches_per_epoch = len(train_images) // BATCH_SIZE
    optimizer = torch.optim.Adam(classifier.parameters(), args.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.num_epochs * batches_per_epoch)
    for _ in range(args.num_epochs):
        for batch in torch.randperm(len(train_images))[: BATCH_SIZE * batches_per_epoch].view(-1, BATCH_SIZE):
            down, right = torch.randint(-2, 3, (2,)).tolist()
            images = train_images[batch].roll((down, right), (2, 3))  # the borders of the digits are black
            loss = F.cross_entropy(classifier(images), train_labels[batch])
            if not loss.isfinite():
                raise ValueError(f"The loss is {loss.item()} with `learning_rate` {args.learning_rate}.")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    with torch.no_grad():
        accuracy = (classifier.eval()(test_images).argmax(1) == test_labels).float().mean().item()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(classifier.state_dict(), args.output)
    print(f"{accuracy:.1%} of {len(test_labels)} test digits are right; the weights are in {args.output}")
    return accuracy


if __name__ == "__main__":
    run(main)
