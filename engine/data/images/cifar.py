"""CIFAR-10's two versions (Krizhevsky 2009): records of bytes, and Python pickles.

A record of the binary version is a label and 3,072 bytes of pixels: the red, green and blue planes,
each row by row. A pickle has the planes of all images as an array [images, 3072] under ``data``.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.data.images.not_images import NotImagesError
from engine.data.input_files.data_file import DataFile
from engine.errors import UserError

SHAPE = 32, 32, 3
LABELS = 10
RECORD_BYTES = 1 + 32 * 32 * 3


def count_records(file: DataFile) -> int:
    """Return the number of records of a binary file. Raises NotImagesError for another file."""
    labels = file.head[::RECORD_BYTES]
    if file.size % RECORD_BYTES or max(labels, default=LABELS) >= LABELS:
        raise NotImagesError(
            f"is neither CIFAR-10's binary version (records of {RECORD_BYTES:,} bytes), a pickle "
            "of CIFAR-10, .npy, .npz, PNG nor JPEG"
        )
    return file.size // RECORD_BYTES


def images_of_records(records: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images [n, 32, 32, 3] of records [n, 3073]."""
    return images_of_planes(records[:, 1:])


def images_of_planes(planes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the images [n, 32, 32, 3] of planes [n, 3072]."""
    return np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def is_pickle(head: bytes) -> bool:
    """Return whether a file begins like a pickle of protocol 2 or later."""
    return len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= pickle.HIGHEST_PROTOCOL


class _DType:
    """Replaces numpy.dtype in a pickle; accepts only 'u1', as other dtypes can hold Python
    objects."""

    def __init__(self, name: str | bytes, *options: object) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"an array of {name!r}")

    def __setstate__(self, state: object) -> None:
        pass  # byte order and alignment, which bytes do not have


class _Array:
    """Replaces numpy.ndarray in a pickle, so that numpy never receives the pickle's state."""

    def __init__(self, *options: object) -> None:
        self.value: NDArray[np.uint8] = np.empty((0, 0), np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DType, bool, bytes]) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _DType):
            raise pickle.UnpicklingError("an array without a dtype")
        values = np.frombuffer(content, np.uint8)
        self.value = values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _encode(text: str, encoding: str | bytes) -> bytes:
    """Replace codecs.encode, which a pickle of protocol 2 by Python 3 calls to make bytes of
    text."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text encoded as {encoding!r}")
    return text.encode("latin1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): None,  # an argument of _reconstruct
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return ALLOWED[module, name]


def unpickle(file: DataFile) -> NDArray[np.uint8]:
    """Return the planes [n, 3072] of a pickle of CIFAR-10. Nothing in the file is executed.

    Raises:
        NotImagesError: the pickle has no images, as is the case for batches.meta.
        UserError: the pickle is corrupt or contains other objects than CIFAR-10's.
    """
    data = b"".join(file.blocks())
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file.name} is a pickle that contains {error}, unlike CIFAR-10's, and was not "
            "executed; save the images as .npy"
        ) from None
    except Exception as error:  # a corrupt pickle can raise almost any exception
        raise UserError(f"{file.name} is a corrupt pickle: {error}; download it again") from None
    arrays = content if isinstance(content, dict) else {}
    found = arrays.get(b"data", arrays.get("data"))  # as Python 2 and 3 write the key
    if not isinstance(found, _Array):
        raise NotImagesError("is a pickle without CIFAR-10's 'data'")
    planes = found.value
    if planes.ndim != 2 or planes.shape[1] != RECORD_BYTES - 1:
        raise UserError(
            f"{file.name}: its 'data' has the shape {list(planes.shape)}; CIFAR-10's is "
            f"[N, {RECORD_BYTES - 1}]; save the images as .npy"
        )
    return planes
