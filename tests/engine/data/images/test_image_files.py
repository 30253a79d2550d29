"""Image files, against the pixels that the test wrote."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.data.images import image_formats
from engine.data.images.image_files import ImageFiles, open_images
from engine.data.input_files import data_file
from engine.errors import UserError
from tests.support.image_data import Pixels, drawn, planes_of, write_cifar, write_cifar_pickle


def pixels_of(files: ImageFiles) -> Pixels:
    return np.concatenate(list(files.blocks()))


def train_of(path: Path | list[str], key: str = "") -> Pixels:
    opened = open_images(str(path) if isinstance(path, Path) else path, key)
    assert list(opened) == ["train"]
    return pixels_of(opened["train"])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a block end within a record."""
    for module in (data_file, image_formats):
        monkeypatch.setattr(module, "BLOCK", 5000)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", ["bin", "pickle-2", "pickle-4", "npy", "npz"])
def test_images_are_read_as_they_were_written(tmp_path: Path, form: str) -> None:
    images, path = drawn(7), tmp_path / "data_batch_1"
    if form == "bin":
        write_cifar(path, images)
    elif form.startswith("pickle"):
        write_cifar_pickle(path, images, protocol=int(form[-1]))
    elif form == "npy":
        path = tmp_path / "images.npy"
        np.save(path, images)
    else:
        path = tmp_path / "images.npz"
        np.savez_compressed(path, labels=np.arange(7), images=images)
    assert np.array_equal(train_of(path), images)


def test_a_pickle_of_python_2_is_read(tmp_path: Path) -> None:
    """With text as bytes and numpy's old names, as CIFAR-10 was published."""
    images, path = drawn(2), tmp_path / "data_batch_1"
    raw = planes_of(images).tobytes()
    state = (
        b"(I1\n(I2\nI3072\ntcnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'|'\nNNNI-1\nI-1\nI0\ntbI00\n"
    )
    path.write_bytes(
        b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        + state
        + b"T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tbu."
    )
    assert pickle.loads(path.read_bytes(), encoding="latin1")["data"].shape == (2, 3072)
    assert np.array_equal(train_of(path), images)


def test_both_versions_of_cifar_in_one_folder_are_rejected(tmp_path: Path) -> None:
    images = drawn(2)
    for name in ("python", "binary"):
        (tmp_path / name).mkdir()
    (tmp_path / "python/data_batch_1").write_bytes(pickle.dumps({"data": planes_of(images)}, 2))
    write_cifar(tmp_path / "binary/data_batch_1.bin", images)
    with pytest.raises(UserError, match="both versions of CIFAR-10, so every image twice"):
        train_of(tmp_path)
    assert np.array_equal(train_of(tmp_path / "python"), images)


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_with_other_objects_is_rejected_and_not_executed(
    tmp_path: Path, protocol: int
) -> None:
    path, trace = tmp_path / "data_batch_1", tmp_path / "trace"
    content = {"data": planes_of(drawn(1)), "labels": Evil(trace)}
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=r"pickle that contains .*, and was not executed; save"):
        train_of(path)
    assert not trace.exists()


def test_an_array_of_objects_in_a_pickle_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": np.array([[{}]])}, 2))
    with pytest.raises(UserError, match=r"contains an array of b?'O8'"):
        train_of(path)


def test_the_folder_of_cifar_has_a_test_split(tmp_path: Path) -> None:
    parts = [drawn(3, seed=n) for n in range(3)]
    write_cifar(tmp_path / "data_batch_1.bin", parts[0])
    write_cifar(tmp_path / "data_batch_2.bin", parts[1])
    write_cifar(tmp_path / "test_batch.bin", parts[2])
    (tmp_path / "readme.html").write_text("<a>CIFAR</a>")
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": ["frog"]}, 2))
    opened = open_images(str(tmp_path), "")
    assert np.array_equal(pixels_of(opened["train"]), np.concatenate(parts[:2]))
    assert np.array_equal(pixels_of(opened["test"]), parts[2])
    # a test batch that is named itself is what is asked for
    assert np.array_equal(train_of(tmp_path / "test_batch.bin"), parts[2])


def test_a_folder_of_pictures_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    images = drawn(3, 6, 5)
    for name, image in zip(("b.png", "c.PNG", "a/z.png"), images, strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    assert np.array_equal(train_of(tmp_path), images[[2, 0, 1]])


def test_a_grey_picture_among_coloured_ones_gets_three_channels(tmp_path: Path) -> None:
    colour = drawn(1, 6, 5)[0]
    Image.fromarray(colour).save(tmp_path / "b.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "a.png")
    found = train_of(tmp_path)
    assert np.array_equal(found[1], colour)
    assert np.array_equal(found[0], colour[..., :1].repeat(3, axis=2))


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    grey = drawn(4, 5, 6)[..., 0]
    np.save(tmp_path / "grey.npy", grey)
    assert np.array_equal(train_of(tmp_path / "grey.npy"), grey[..., None])
    Image.fromarray(grey[0]).save(tmp_path / "grey.jpg", quality=100)
    found = train_of(tmp_path / "grey.jpg")
    assert found.shape == (1, 5, 6, 1)
    assert np.abs(found[0, ..., 0].astype(int) - grey[0]).max() < 12, "JPEG is lossy"


def test_arrays_of_an_npz_are_splits_by_their_names(tmp_path: Path) -> None:
    path, images = tmp_path / "mnist.npz", drawn(5, 4, 4)[..., 0]
    np.savez(path, x_train=images[:3], y_train=np.arange(3), x_test=images[3:])
    opened = open_images(str(path), "text")
    assert {name: files.count for name, files in opened.items()} == {"train": 3, "test": 2}
    assert np.array_equal(train_of(path, key="x_test"), images[3:, ..., None])


def test_unusable_files_are_rejected_by_name(tmp_path: Path) -> None:
    images = drawn(4, 6, 6)
    np.save(tmp_path / "floats.npy", images.astype(np.float32))
    np.save(tmp_path / "matrix.npy", images.reshape(4, -1))
    np.save(tmp_path / "fortran.npy", np.asfortranarray(images))
    np.savez(tmp_path / "two.npz", a=images, b=images)
    np.savez(tmp_path / "none.npz", labels=np.arange(4))
    np.save(tmp_path / "short.npy", images)
    (tmp_path / "short.npy").write_bytes((tmp_path / "short.npy").read_bytes()[:-100])
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n and nothing")
    Image.fromarray(images[0].astype(np.uint16)[..., 0] * 256).save(tmp_path / "deep.png")
    write_cifar(tmp_path / "cut.bin", drawn(2))
    (tmp_path / "cut.bin").write_bytes((tmp_path / "cut.bin").read_bytes()[:-1])
    (tmp_path / "label.bin").write_bytes(bytes([10]) * 3073)
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("floats.npy", r"is float32 \[4, 6, 6, 3\]; images are uint8"),
        ("matrix.npy", r"is uint8 \[4, 108\]; images are uint8"),
        ("fortran.npy", "is in Fortran order"),
        ("two.npz", "several arrays of images; set data.key to one of 'a', 'b'"),
        ("none.npz", "contains no array of images"),
        ("short.npy", "is truncated: 1 of its 4 images are missing"),
        ("cut.png", "cannot be decoded"),
        ("deep.png", "more than 8 bits per channel"),
        ("cut.bin", "is neither CIFAR-10's binary version"),
        ("label.bin", "is neither CIFAR-10's binary version"),
        ("empty", "no file is there"),
    ):
        with pytest.raises(UserError, match=message):
            train_of(tmp_path / name)


def test_images_of_several_sizes_are_rejected(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", drawn(2, 6, 6))
    np.save(tmp_path / "b.npy", drawn(2, 6, 5))
    with pytest.raises(UserError, match=r"b\.npy: its images have 6 x 5 pixels, those of .*a\.npy"):
        train_of(tmp_path)
