"""Reading samples: formats, preprocessing, errors, the shared sets."""

import numpy as np
import pytest
from PIL import Image

from tvm_qplugin.core.attrs import TensorSpec
from tvm_qplugin.core.errors import CalibrationError
from tvm_qplugin.data import open_labelled, open_samples
from tvm_qplugin.preprocess import PRESETS, Preprocess
from tvm_qplugin.samples import fit_array

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 3), "uint8")


@pytest.fixture
def folder(tmp_path):
    """Three images, one in a subfolder, one no image, and labels for two."""
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.BMP", "sub/c.png"]):
        Image.fromarray(PIXELS + np.uint8(i)).save(root / name)
    (root / "notes.txt").write_text("no image")
    (root / "labels.csv").write_text('file,class_index,class_name\nb.png,7,"x, y"\nsub/c.png,1,z\n')
    return root


def test_folder(folder):
    samples = open_samples(folder, preprocess="raw,layout=NHWC")
    expected = [PIXELS + np.uint8(i) for i in (1, 0, 2)]
    assert len(samples) == 3 and (np.stack(list(samples)) == expected).all()
    assert [s.dtype for s in samples] == ["float32"] * 3
    assert next(iter(open_samples(folder))).dtype == "uint8"


def test_labelled_folder(folder):
    pairs = list(open_labelled(folder, preprocess="unit"))
    assert [label for _, label in pairs] == [7, 1] and pairs[0][0].shape == (3, 6, 8)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets(preset):
    formulas = {
        "raw": lambda x: x,
        "unit": lambda x: x / 255,
        "tf": lambda x: x / 127.5 - 1,
        "imagenet": lambda x: (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
    }
    expected = formulas[preset](PIXELS.astype("float64")).transpose(2, 0, 1)
    for how in (Preprocess.parse(preset), Preprocess.parse(preset + ",channels=RGB")):
        np.testing.assert_allclose(how.array(PIXELS), expected, atol=1e-6)
        np.testing.assert_allclose(how.image(Image.fromarray(PIXELS)), expected, atol=1e-6)


def test_spellings():
    how = Preprocess.parse("crop=4x6, scale=1/127.5,mean=127.5:127.5:127.5,channels=BGR,layout=NHWC")
    assert how.size == (4, 6) and how.scale == 1 / 127.5
    np.testing.assert_allclose(how.array(PIXELS), PIXELS[1:5, 1:7, ::-1] / 127.5 - 1, atol=1e-6)
    for text in ("", "imagenet,letterbox=352", "tf,crop=4x6,channels=L", "unit,shorter=256,crop=224"):
        how = Preprocess.parse(text)
        assert Preprocess.parse(str(how)) == how


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo", "'foo' is not understood; use raw, unit, tf, imagenet"),
        ("size=3", "'size=3' is not understood"),
        ("crop=0", "crop=0 is not understood; write for example crop=224"),
        ("crop=1x2x3", "crop=1x2x3"),
        ("scale=1/0", "scale=1/0"),
        ("scale=0", "not 0"),
        ("mean=nan", "finite"),
        ("mean=1:2", "mean has 2 values, RGB has 3 channels"),
        ("mean=1:2:3,channels=L", "mean has 3 values, L has 1"),
        ("layout=HWC", "layout 'HWC' is unknown"),
        ("channels=", "channels '' is unknown"),
    ],
)
def test_declarations_that_are_wrong(text, message):
    with pytest.raises(CalibrationError, match=message):
        Preprocess.parse(text)


def test_geometry():
    image = Image.fromarray(np.full((30, 60, 3), 200, "uint8"))
    shapes = {
        text: Preprocess.parse(text).image(image).shape
        for text in (
            "crop=20",
            "crop=40x50",
            "stretch=10x20",
            "letterbox=24",
            "shorter=15",
            "shorter=20,crop=16",
        )
    }
    assert shapes == {
        "crop=20": (3, 20, 20),
        "crop=40x50": (3, 40, 50),
        "stretch=10x20": (3, 10, 20),
        "letterbox=24": (3, 24, 24),
        "shorter=15": (3, 15, 30),
        "shorter=20,crop=16": (3, 16, 16),
    }
    boxed = Preprocess.parse("letterbox=24").image(image)
    assert (boxed[:, :6] == 114).all() and (boxed[:, 6:18] == 200).all() and (boxed[:, 18:] == 114).all()
    assert Preprocess.parse("channels=L").image(image).shape == (1, 30, 60)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    x, y = RNG.normal(size=(5, 3, 4)).astype("float32"), np.arange(5, dtype="uint8")
    path = tmp_path / "d.npz"
    save(path, x=x, y=y, other=np.asfortranarray(x * 2))
    assert (np.stack(list(open_samples(path))) == x).all()
    assert (np.stack(list(open_samples(path, ["input"]))) == x).all()
    assert (np.stack(list(open_samples(path, ["other"]))) == x * 2).all()
    assert (np.stack(list(open_samples(path, key="other"))) == x * 2).all()
    both = list(open_samples(path, ["other", "x"]))
    assert len(both) == 5 and list(both[0]) == ["other", "x"] and (both[1]["x"] == x[1]).all()
    pairs = open_labelled(path)
    assert len(pairs) == 5 and [int(label) for _, label in pairs] == list(range(5))
    assert (next(iter(pairs))[0] == x[0]).all()


def test_npy_and_iterables(tmp_path):
    path = tmp_path / "d.npy"
    np.save(path, np.stack([PIXELS] * 2))
    assert len(open_samples(path)) == 2
    unit = PIXELS.transpose(2, 0, 1) / np.float32(255)
    for source in (path, [PIXELS] * 2, (p for p in [PIXELS] * 2), np.stack([PIXELS] * 2)):
        assert np.allclose(list(open_samples(source, preprocess="unit")), [unit] * 2)
    mine = [PIXELS]
    assert open_samples(mine) is mine


def _file(path, data=b""):
    path.write_bytes(data)
    return path


def _saved(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def _cut(path):
    np.savez(path, x=np.zeros((50, 99)))
    data = bytearray(path.read_bytes())
    data[5000] ^= 255
    path.write_bytes(data)
    return path


def _broken_image(folder):
    folder.mkdir()
    Image.fromarray(PIXELS).save(folder / "a.png")
    data = (folder / "a.png").read_bytes()
    return _file(folder / "a.png", data[: len(data) // 2]).parent


def _no_image(folder):
    folder.mkdir()
    return _file(folder / "z.jpg", b"text").parent


OBJECTS = np.array([{}, []], dtype=object)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "none.npz", r"none\.npz does not exist"),
        (lambda d: d, "holds no images"),
        (lambda d: _file(d / "a.txt"), "expected a folder of images, .npz or .npy"),
        (lambda d: _file(d / "a.npz", b"PK"), "not a sound .npz"),
        (lambda d: _file(d / "a.npy"), "not a plain .npy"),
        (
            lambda d: _saved(d / "a.npz", a=np.zeros(3), b=np.zeros((2, 2))),
            r"holds a float64\[3\], b float64\[2, 2\]",
        ),
        (lambda d: _saved(d / "a.npz"), "it holds nothing"),
        (lambda d: _saved(d / "a.npz", x=OBJECTS), "pickled objects"),
        (lambda d: _saved(d / "a.npz", x=np.float32(3)), "single number"),
        (lambda d: _cut(d / "a.npz"), "array 'x' is damaged"),
        (lambda d: _broken_image(d / "i"), r"a\.png cannot be decoded"),
        (lambda d: _no_image(d / "i"), r"z\.jpg is not an image"),
    ],
)
def test_bad_sources(tmp_path, make, message):
    with pytest.raises(CalibrationError, match=message):
        list(open_samples(make(tmp_path)))


def test_more_bad_sources(tmp_path, folder):
    np.save(tmp_path / "o.npy", OBJECTS)
    with pytest.raises(CalibrationError, match="not a plain"):
        open_samples(tmp_path / "o.npy")
    uneven = _saved(tmp_path / "u.npz", x=np.zeros((2, 2)), y=np.zeros(3))
    with pytest.raises(CalibrationError, match="2 samples but 3 labels"):
        open_labelled(uneven)
    with pytest.raises(CalibrationError, match="differ in their number"):
        open_samples(uneven, ["x", "y"])
    with pytest.raises(CalibrationError, match="no array for 'a', 'b'; it holds x"):
        open_samples(uneven, ["a", "b"])
    with pytest.raises(CalibrationError, match="no labels 'mask'"):
        open_labelled(uneven, labels="mask")
    for text in ("name\nb.png\n", "file,class_index\nb.png,dog\n"):
        (folder / "labels.csv").write_text(text)
        with pytest.raises(CalibrationError, match="expected a header with file and class_index"):
            open_labelled(folder)
    (folder / "labels.csv").unlink()
    with pytest.raises(CalibrationError, match="must list file,class_index"):
        open_labelled(folder)


@pytest.mark.parametrize(
    ("name", "how", "count", "shape"),
    [
        ("imagenet_calib", "tf,crop=224", 200, (3, 224, 224)),
        ("imagenet_val_dev", "tf,crop=224", 650, (3, 224, 224)),
        ("cifar10_dev.npz", "imagenet", 500, (3, 32, 32)),
        ("kws_mfcc_dev.npz", None, 2345, (49, 10)),
        ("mnist_calib.npz", "unit", 300, (28, 28)),
        ("vww_coco128.npz", "unit", 128, (3, 96, 96)),
        ("vad_gsc_calib.npz", "scale=1/32768", 50, (16000,)),
    ],
)
def test_labelled_sets(shared_data, name, how, count, shape):
    pairs = open_labelled(shared_data / "data" / name, ["input"], how)
    sample, label = next(iter(pairs))
    assert len(pairs) == count and sample.shape == shape and sample.dtype == "float32" and int(label) >= 0


def test_other_sets(shared_data):
    boxes = open_samples(shared_data / "data" / "coco128", preprocess="stretch=352,unit,channels=BGR")
    assert len(boxes) == 128 and next(iter(boxes)).shape == (3, 352, 352)
    assert len(open_samples(shared_data / "data" / "ad_toycar_normal1.npz")) == 196
    assert len(open_samples(shared_data / "data" / "seg_coco128_masks257.npz")) == 128
    pair = next(iter(open_samples(shared_data / "data" / "stsb_calib.npz", ["ids_a", "mask_a"])))
    assert {name: row.shape for name, row in pair.items()} == {"ids_a": (64,), "mask_a": (64,)}


@pytest.mark.parametrize(
    ("given", "expected", "layout"),
    [
        ((3, 8, 9), (1, 8, 9, 3), "NHWC"),
        ((8, 9, 3), (1, 3, 8, 9), "NCHW"),
        ((1, 3, 8, 8), (1, 8, 8, 3), "NHWC"),
        ((8, 8, 3), (1, 3, 8, 8), "NCHW"),
    ],
)
def test_images_in_the_other_layout(given, expected, layout):
    with pytest.raises(CalibrationError, match=f"takes images as {layout}.*layout={layout}"):
        fit_array("sample 0", np.zeros(given, "float32"), TensorSpec(expected, "float32"))


@pytest.mark.parametrize(("given", "expected"), [((3, 8, 9), (1, 1, 8, 9)), ((8, 9, 3), (1, 8, 9, 1))])
def test_images_with_colours_that_shall_be_grey(given, expected):
    with pytest.raises(CalibrationError, match=r"takes grey images .*channels=L"):
        fit_array("sample 0", np.zeros(given, "float32"), TensorSpec(expected, "float32"))


def test_images_of_another_size():
    with pytest.raises(CalibrationError, match="resize or transpose the data"):
        fit_array("sample 0", np.zeros((3, 8, 9), "float32"), TensorSpec((1, 9, 9, 3), "float32"))
