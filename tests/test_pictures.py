"""One reader of pictures for training, evaluation, inversion and the pipeline: what each file becomes, and what is
said of it."""

import argparse
import logging
import struct
import sys
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from ddim_scheduler import evaluation
from ddim_scheduler.image_files import center_crop, read_image, scale_to, scale_to_cover
from ddim_scheduler.image_folders import ImageReader, find_images
from ddim_scheduler.pipelines.images import to_tensor
from ddim_scheduler.training import ImageDataset, find_dataset_images, find_folder_images

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import invert_and_interpolate

RNG = np.random.default_rng(0)
NOISE = RNG.integers(1, 256, size=(12, 16, 3), dtype=np.uint8)  # not 0, which stands for transparent
HALF = np.repeat([[0] * 8 + [255] * 8], 12, axis=0).astype(np.uint8)  # opacity


def write(path, pixels, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, PIL.Image.Image) else PIL.Image.fromarray(pixels)
    image.save(path, **settings)
    return path


def trained_on(folder, resolution=(12, 16), **settings):
    """The pixels of a folder's images, (N, C, H, W) in [0, 1], as the training takes them."""
    dataset = ImageDataset(*find_folder_images(folder), resolution=resolution, center_crop=True, **settings)
    dataset.order = np.arange(len(dataset))
    return torch.stack([dataset[k][0] for k in range(len(dataset))]) / 2 + 0.5


def every_reader(folder, channels, height, width, monkeypatch):
    """The pixels of a folder's image as each part of the package reads it."""
    like = torch.zeros(1, channels, height, width)
    monkeypatch.setattr(invert_and_interpolate, "image_shape", lambda _: (channels, height, width))
    args = argparse.Namespace(image_dir=folder, num_images=1, num_reconstructed=1, seed=0)
    return {
        "training": trained_on(folder, (height, width), channels=channels)[0],
        "evaluation": evaluation.load_images(folder, like=like)[0] / 255,
        "inversion": invert_and_interpolate.load_images(argparse.Namespace(unet=None), args)[0],
    }


# -------------------------------------------------------------------------------------------------------- transparency

NEARLY_GRAY = np.where(HALF == 0, 0, NOISE[..., 0])


def palette():
    image = PIL.Image.fromarray(NEARLY_GRAY, "L").convert("P")
    image.putpalette([k for k in range(256) for _ in range(3)])
    return image


TRANSPARENT = {
    "RGBA.png": (np.dstack([np.where(HALF[..., None] == 0, 7, NOISE), HALF]), {}),
    "RGBA.webp": (np.dstack([NOISE, HALF]), {"lossless": True}),
    "LA.png": (PIL.Image.merge("LA", [PIL.Image.fromarray(NOISE[..., 0]), PIL.Image.fromarray(HALF)]), {}),
    "tRNS of gray.png": (NEARLY_GRAY, {"transparency": 0}),
    "tRNS of colour.png": (np.where(HALF[..., None] == 0, 0, NOISE).astype(np.uint8), {"transparency": (0, 0, 0)}),
    "tRNS of a palette.png": (palette(), {"transparency": 0}),
    "palette.gif": (palette(), {"transparency": 0}),
    "tRNS of 16 bits.png": (np.where(HALF == 0, 0, NOISE[..., 0].astype(np.uint16) * 257), {"transparency": 0}),
}


@pytest.mark.parametrize("name", TRANSPARENT)
def test_transparent_pictures_are_painted_over_white(name, tmp_path, monkeypatch, caplog):
    picture, settings = TRANSPARENT[name]
    try:
        write(tmp_path / name, picture, **settings)
    except OSError as error:
        pytest.skip(f"this Pillow cannot write it: {error}")
    is_gray = "RGB" not in name and "colour" not in name
    expected = np.where(HALF[..., None] == 0, 255, NOISE[..., :1] if is_gray else NOISE)
    expected = torch.from_numpy(expected.astype(np.float32) / 255).permute(2, 0, 1).expand(3, -1, -1)
    with caplog.at_level(logging.WARNING):
        for reader, pixels in every_reader(tmp_path, 3, 12, 16, monkeypatch).items():
            assert (pixels - expected).abs().max() < 1e-6, reader
        with PIL.Image.open(tmp_path / name) as image:
            assert (to_tensor("image", image, 3)[0] - expected).abs().max() < 1e-6
    assert "1 transparent, painted over white" in caplog.text
    dataset = ImageDataset([tmp_path / name] * 3, [0] * 3, resolution=[12, 16])
    assert dataset.notes["transparent, painted over white"] == 3


def test_half_transparent_pixels_over_a_colour(tmp_path):
    """c a + (1 - a) b, rounded."""
    alpha = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
    path = write(tmp_path / "a.png", np.dstack([NOISE, alpha]))
    a = alpha[..., None] / 255
    for colour, value in (("white", [255] * 3), ("#204060", [32, 64, 96]), ("black", [0] * 3)):
        pixels = read_image(path, background=colour).pixels.permute(1, 2, 0).numpy()
        assert np.abs(pixels - (NOISE * a + np.array(value) * (1 - a))).max() <= 1
    gray = write(tmp_path / "b.png", PIL.Image.fromarray(np.dstack([NOISE[..., 0], alpha]), "LA"))
    assert len(read_image(gray, background="#808080").pixels) == 1
    assert len(read_image(gray, background="blue").pixels) == 3
    opaque = write(tmp_path / "c.png", np.dstack([NOISE, np.full_like(alpha, 255)]))
    assert read_image(opaque).notes == ()


def test_alpha_is_kept_if_asked_for_and_weighs_the_colours_that_are_scaled(tmp_path):
    """Opaque red beside transparent green: no green comes in, at any size."""
    path = write(tmp_path / "a.png", np.dstack([NOISE, HALF]))
    assert torch.equal(read_image(path, 4).pixels, torch.from_numpy(np.dstack([NOISE, HALF])).permute(2, 0, 1))
    red_or_green = np.zeros((96, 96, 4), dtype=np.uint8)
    red_or_green[::2] = 255, 0, 0, 255
    red_or_green[1::2] = 0, 255, 0, 0
    path = write(tmp_path / "b.png", red_or_green)
    for size in (13, 48, 96, 200):
        pixels = read_image(path, 4, (size, size)).pixels
        seen = pixels[3] > 0
        assert (pixels[0][seen] >= 254).all(), size
        assert (pixels[1][seen] <= 1).all(), size
        assert abs(pixels[3].float().mean().item() - 127.5) < 2, size


# ---------------------------------------------------------------------------------------------------------- one reader


def photo(tmp_path, name, mode="RGB", size=(40, 24), **settings):
    """A smooth picture of one kind."""
    y, x = np.mgrid[: size[1], : size[0]] / max(size)
    pixels = np.stack([128 + 100 * np.sin(3 * x + k) * np.cos(2 * y) for k in range(3)], axis=-1).round()
    image = PIL.Image.fromarray(pixels.astype(np.uint8))
    if mode == "I;16":
        image = PIL.Image.fromarray((pixels[..., 0] * 257).astype(np.uint16))
    elif mode != "RGB":
        image = image.convert(mode)
    return write(tmp_path / "folder" / name, image, **settings)


def turned():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    return exif


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("a.png", {"exif": turned()}),
        ("a.jpg", {"exif": turned(), "quality": 95}),
        ("a.jpg", {"mode": "CMYK", "quality": 95}),
        ("a.png", {"mode": "I;16"}),
        ("a.tif", {"mode": "I;16"}),
        ("a.png", {"mode": "P"}),
        ("a.bmp", {"mode": "1"}),
        ("a.jfif", {"format": "JPEG"}),
        ("a.JP2", {"format": "JPEG2000"}),
        ("a.avif", {"quality": 90}),
        ("a.tga", {}),
        ("a.ppm", {}),
    ],
)
def test_readers_agree(name, settings, tmp_path, monkeypatch):
    """On orientation, crop, modes and formats, up to the rounding to 8 bits."""
    if name.endswith(".avif") and ".avif" not in PIL.Image.registered_extensions():
        pytest.skip("this Pillow cannot write AVIF")
    path = photo(tmp_path, name, **settings)
    channels = 1 if settings.get("mode") == "I;16" else 3
    read = every_reader(path.parent, channels, 16, 16, monkeypatch)
    for reader, pixels in read.items():
        assert pixels.shape == (channels, 16, 16)
        assert (pixels - read["training"]).abs().max() < 1 / 255, reader
    with PIL.Image.open(path) as image:
        size = (40, 24) if "exif" not in settings else (24, 40)
        piped = to_tensor("image", image, channels)[0]
    assert piped.shape == (channels, size[1], size[0])
    assert (center_crop(scale_to_cover(piped, 16, 16), 16, 16) - read["training"]).abs().max() < 1.5 / 255


def test_camera_turns_each_way(tmp_path):
    """All eight orientations of EXIF, against Pillow's own."""
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        path = write(tmp_path / f"{orientation}.png", NOISE, exif=exif)
        with PIL.Image.open(path) as image:
            expected = np.asarray(PIL.ImageOps.exif_transpose(image))
        assert np.array_equal(read_image(path).pixels.permute(1, 2, 0), expected)


# -------------------------------------------------------------------------------------------------------------- depths


def test_white_is_zero_in_16_bits_too(tmp_path):
    deep = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300
    path = write(tmp_path / "a.tif", deep, tiffinfo={262: 0})
    assert (read_image(path).pixels[0].numpy() + deep / 65535 - 1).max() < 1e-6
    assert (read_image(write(tmp_path / "b.tif", deep)).pixels[0].numpy() - deep / 65535).max() < 1e-6


@pytest.mark.parametrize("kind", ["png", "tif", "npy"])
def test_images_of_12_bits_need_their_white_level(tmp_path, kind):
    deep = RNG.integers(4096, size=(12, 16)).astype(np.uint16)
    folder = tmp_path / "folder"
    write(folder / "dark.png", np.zeros((12, 16), dtype=np.uint8))
    if kind == "npy":
        np.save(folder / "a.npy", deep)
    else:
        write(folder / f"a.{kind}", deep)
    message = f"1 images of 16 bits go up to {deep.max()} of 65535, almost black: give `white_level`, 4095"
    with pytest.raises(ValueError, match=message):
        trained_on(folder)
    with pytest.raises(ValueError, match=message):
        evaluation.load_images(folder)
    expected = torch.from_numpy(deep / np.float32(4095))
    assert (trained_on(folder, white_level=4095)[0, 0] - expected).abs().max() < 1e-6
    assert (trained_on(folder, white_level=65535)[0, 0] - expected * 4095 / 65535).abs().max() < 1e-6
    with pytest.raises(ValueError, match=r"a\.\w+ cannot be read: pixels must be in \[0, 1023\], but go from"):
        trained_on(folder, white_level=1023)


def png_of_16_bits(pixels):
    """An RGB PNG of 16 bits, which Pillow does not write."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_colour_of_16_bits_is_taken_by_8_and_said(tmp_path):
    deep = RNG.integers(65536, size=(12, 16, 3))
    (tmp_path / "a.png").write_bytes(png_of_16_bits(deep))
    (tmp_path / "b.ppm").write_bytes(b"P6\n16 12\n65535\n" + deep.astype(">u2").tobytes())
    dataset = ImageDataset(*find_folder_images(tmp_path), resolution=[12, 16])
    assert dataset.notes["of 16 bits and colour or alpha, of which 8 bits are taken"] == 2
    for (pixels,) in dataset.images:
        assert np.abs(pixels.permute(1, 2, 0).numpy() / 255 - deep / 65535).max() <= 1 / 255
    PIL.Image.fromarray(np.arange(64, dtype=np.int32).reshape(8, 8)).save(tmp_path / "c.tiff")
    with pytest.raises(ValueError, match=r"c\.tiff cannot be read: of 32-bit integers"):
        trained_on(tmp_path)


@pytest.mark.parametrize(
    ("array", "channels"),
    [
        (np.zeros((3, 64, 48), np.uint8), 3),
        (np.zeros((13, 64, 48), np.float16), 13),
        (np.zeros((64, 48, 13), np.float64), 13),
        (np.zeros((64, 48), np.bool_), 1),
        (np.zeros((64, 48, 1), np.uint16), 1),
    ],
)
def test_arrays_of_either_layout(tmp_path, array, channels):
    np.save(tmp_path / "a.npy", array)
    image = read_image(tmp_path / "a.npy")
    assert image.pixels.shape == (channels, 64, 48)
    assert ("arrays (C, H, W)" in image.notes) == (len(array) == channels)


@pytest.mark.parametrize("dtype", [np.uint32, np.int64, np.complex64, np.str_, np.int8])
def test_arrays_of_other_kinds_are_refused(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros((8, 8)).astype(dtype))
    with pytest.raises(ValueError, match=r"a\.npy cannot be read: an array must be uint8, uint16, bool, or floats"):
        trained_on(tmp_path)


# --------------------------------------------------------------------------------------------------------- large photos


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_large_photos_are_decoded_to_what_is_needed(tmp_path, monkeypatch, mode):
    """A JPEG file of 1600x1200 to twice the size that is asked for, or a little more; the picture is the same."""
    path = photo(tmp_path, "a.jpg", mode=mode, size=(1600, 1200), quality=95)
    whole = center_crop(scale_to_cover(read_image(path).pixels, 64, 64), 64, 64)
    sizes = []
    convert = PIL.Image.Image.convert
    monkeypatch.setattr(PIL.Image.Image, "convert", lambda self, *a: sizes.append(self.size) or convert(self, *a))
    image = read_image(path, size=(64, 64)).pixels
    assert max(map(min, sizes), default=0) <= 150
    assert (center_crop(image, 64, 64).float() - whole).abs().max() <= 3


def test_reduced_picture_is_the_scaled_one(tmp_path):
    path = photo(tmp_path, "a.png", size=(800, 600))
    whole = scale_to(read_image(path).pixels, 60, 80)
    assert (read_image(path, size=(60, 80)).pixels.float() - whole).abs().max() <= 2


# ------------------------------------------------------------------------------------------------ folders and archives


@pytest.fixture
def mixed_folder(tmp_path):
    folder = tmp_path / "mixed"
    for name in ("a/1.png", "a/2.PNG", "b/3.png", "a/.hidden.png", ".ipynb_checkpoints/1.png", "__MACOSX/a/4.png"):
        write(folder / name, NOISE)
    (folder / "a" / "._1.png").write_bytes(b"\0\5\x16\7")
    for name in ("notes.txt", "b/readme.txt", "b/photo.xcf", "b/IMG"):
        (folder / name).write_bytes(b"other")
    write(tmp_path / "elsewhere" / "5.png", NOISE)
    (folder / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "again").symlink_to(tmp_path / "elsewhere")
    (folder / "b" / "loop").symlink_to(folder)
    return folder


def test_what_is_left_out_is_counted(mixed_folder):
    found = find_images(mixed_folder)
    assert [str(name) for name in found.names] == ["a/1.png", "a/2.PNG", "b/3.png", "b/again/5.png"]
    assert found.left_out == {"hidden": 2, "hidden folder": 2, ".txt": 2, ".xcf": 1, "without an ending": 1}
    lines = ImageReader(found.items).remarks(found.left_out)
    assert lines[-1].startswith("left out: 2 ")
    assert "2 .txt" in lines[-1]


def test_archive_is_the_folder(mixed_folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in mixed_folder.glob("**/*"):
            if path.is_file() and not path.is_symlink():
                archive.write(path, path.relative_to(mixed_folder))
        archive.write(tmp_path / "elsewhere" / "5.png", "b/again/5.png")
    folder, archive = (find_folder_images(p, class_conditional=True) for p in (mixed_folder, tmp_path / "images.zip"))
    assert archive.class_names == folder.class_names == ["a", "b"]
    assert archive.labels == folder.labels
    assert torch.equal(trained_on(mixed_folder), trained_on(tmp_path / "images.zip"))
    assert np.array_equal(evaluation.load_images(tmp_path / "images.zip")[0].permute(1, 2, 0), NOISE)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archive_with_odd_names_and_one_of_two_entries(tmp_path):
    """Entries are opened by the names that they have; a later one of the same name is the file, as unpacked."""
    path = tmp_path / "a::b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(["./c/0.npy", "c//1.npy", "c/2::3.npy", "c/4.npy", "c/4.npy"]):
            np.save(tmp_path / "array.npy", np.full((8, 8), value, dtype=np.uint8))
            archive.writestr(name, (tmp_path / "array.npy").read_bytes())
    found = find_folder_images(path, class_conditional=True)
    assert found.class_names == ["c"]
    assert [read_image(item).pixels[0, 0, 0].item() for item in found.items] == [0, 1, 2, 4]


def test_archive_is_opened_once_by_each_process(tmp_path, monkeypatch):
    """Its list of files is long where there are many; and processes that load images do not share the place in it."""
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for k in range(40):
            np.save(tmp_path / "array.npy", np.full((8, 8, 2), 6 * k, dtype=np.uint8))
            archive.write(tmp_path / "array.npy", f"{k:02}.npy")
    opened, init = [], zipfile.ZipFile.__init__
    monkeypatch.setattr(zipfile.ZipFile, "__init__", lambda self, *a, **k: (opened.append(a), init(self, *a, **k))[1])
    dataset = ImageDataset(*find_folder_images(tmp_path / "images.zip"), resolution=[8, 8], image_cache_gb=0)
    assert len(opened) < 20  # one for the names, and those of threads that begin at the same time
    loader = torch.utils.data.DataLoader(dataset, 4, num_workers=2)
    seen = torch.cat([images for images, _ in loader])
    assert seen.shape == (40, 2, 8, 8)
    assert sorted(((seen[:, 0, 0, 0] + 1) * 127.5).round().int().tolist()) == [6 * k for k in range(40)]


def test_archive_of_datasets(tmp_path):
    """`datasets` gives the address of an image in the archive, without its bytes."""
    pytest.importorskip("datasets")
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "images.zip", "w") as archive:
        for k in range(3):
            archive.write(write(tmp_path / f"{k}.png", np.full_like(NOISE, 50 * k)), f"images/{k}.png")
    found = find_dataset_images(str(tmp_path / "zipped"), cache_dir=tmp_path / "cache")
    assert "zip://" in found.items[0]["path"] or found.items[0]["bytes"]
    dataset = ImageDataset(*found, resolution=[8, 8])
    assert sorted({int(images[0].max()) for images in dataset.images}) == [0, 50, 100]


def test_data_set_that_was_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {}
    for part, value in (("train", 10), ("test", 200)):
        path = write(tmp_path / f"{part}.png", np.full_like(NOISE, value))
        data = datasets.Dataset.from_dict({"image": [str(path)] * 2}).cast_column("image", datasets.Image())
        parts[part] = data
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "both")
    parts["test"].save_to_disk(tmp_path / "one")
    for name, split, value in (("both", None, 10), ("both", "test", 200), ("one", None, 200)):
        dataset = ImageDataset(*find_dataset_images(str(tmp_path / name), split=split), resolution=[8, 8])
        assert int(dataset.images[0][0].max()) == value
    with pytest.raises(ValueError, match=r"`split` must be one of \['train', 'test'\], but is 'dev'"):
        find_dataset_images(str(tmp_path / "both"), split="dev")


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "val")])
def test_parts_of_the_data_are_no_classes(names, tmp_path):
    for name in names:
        write(tmp_path / name / "cat" / "a.png", NOISE)
    with pytest.raises(ValueError, match=r"`class_conditional` would learn .* as classes: give one of them"):
        find_folder_images(tmp_path, class_conditional=True)
    assert find_folder_images(tmp_path / names[0], class_conditional=True).class_names == ["cat"]


def test_all_that_cannot_be_read_is_in_one_list(tmp_path):
    """And is left out if asked for; labels stay with their images."""
    for k in range(40):
        path = write(tmp_path / "images" / str(k % 2) / f"{k:02}.png", np.full_like(NOISE, k))
        if k % 4 == 0 or k < 20:
            path.write_bytes(path.read_bytes()[:40])
    found = find_folder_images(tmp_path / "images", class_conditional=True)
    with pytest.raises(ValueError, match="25 of 40 cannot be read") as error:
        ImageDataset(*found, resolution=[12, 16])
    lines = str(error.value).splitlines()
    assert len(lines) == 1 + 20 + 2
    assert all(".png cannot be read: " in line for line in lines[1:21])
    assert lines[21:] == ["and 5 more", "`skip_broken` leaves them out."]
    for cache in (1.0, 1e-9):
        dataset = ImageDataset(*found, resolution=[12, 16], skip_broken=True, image_cache_gb=cache)
        values = [
            (round((image.mean().item() + 1) * 127.5), label) for image, label in map(dataset.__getitem__, range(15))
        ]
        assert sorted(values) == [(k, k % 2) for k in range(20, 40) if k % 4]
    assert len(dataset.readers[0].broken) == 25
    for path in (tmp_path / "images").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="40 of 40 cannot be read"):
        ImageDataset(*found, resolution=[12, 16], skip_broken=True)


def test_frames_crops_and_small_images_are_counted(tmp_path):
    frames = [PIL.Image.fromarray(NOISE), PIL.Image.fromarray(255 - NOISE)]
    write(tmp_path / "a.tif", frames[0], save_all=True, append_images=frames[1:])
    write(tmp_path / "b.png", NOISE[:, :12])
    dataset = ImageDataset(*find_folder_images(tmp_path), resolution=[16, 16])
    assert dataset.notes == Counter(
        {
            "of several frames or pages, of which the first is taken": 1,
            "cut to the proportions asked for": 1,
            "enlarged": 2,
        }
    )
    assert np.array_equal(read_image(tmp_path / "a.tif").pixels.permute(1, 2, 0), NOISE)


def test_a_part_is_held_out(tmp_path):
    """Each image in one of the two, by the seed; the files of the other part are not touched."""
    for k in range(20):
        write(tmp_path / f"{k:02}.png", np.full_like(NOISE, k))
    found = find_folder_images(tmp_path)
    parts = [[int(item.stem) for item in part.items] for part in found.split(0.15, seed=1)]
    assert sorted(parts[0] + parts[1]) == [*range(20)]
    assert len(parts[1]) == 3
    assert parts[0] == sorted(parts[0])
    assert parts[1] == [int(item.stem) for item in found.split(0.15, seed=1)[1].items]
    assert parts[1] != [int(item.stem) for item in found.split(0.15, seed=2)[1].items]
    with pytest.raises(ValueError, match=r"`validation_share` 0\.99 of 20 images leaves none"):
        found.split(0.99)


def test_alpha_of_a_black_set_is_no_light_and_deep_gray_has_none(tmp_path):
    for k in range(2):
        write(tmp_path / "black" / f"{k}.png", np.dstack([0 * NOISE, np.full_like(NOISE[..., 0], 255)]))
    dataset = ImageDataset(*find_folder_images(tmp_path / "black"), resolution=[12, 16], channels=4)
    assert dataset.remarks() == ["2 almost black, up to 0.0% of white"]
    write(tmp_path / "deep" / "a.png", NOISE[..., 0].astype(np.uint16) * 257)
    with pytest.raises(ValueError, match="has 1 channels, not 4"):
        ImageDataset(*find_folder_images(tmp_path / "deep"), resolution=[12, 16], channels=4)
