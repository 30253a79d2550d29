"""Files that are written one tensor at a time equal those of the libraries, byte for byte."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.errors import RunError, UserError
from engine.files.atomic_write import atomic_path
from engine.inout.tensor_readers import SafetensorsFile, ShardedFiles, TorchFile, common_type
from engine.inout.tensor_writers import write_pt, write_safetensors
from tests.engine.inout.support import SIZES, MaliciousPickle, drawn, torch_file_of
from tests.engine.nvme.support import mounted

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_safetensors_files_equal_those_of_the_library(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = drawn(SIZES, dtype=dtype)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for metadata in ({"format": "pt"}, {"name": 'a "quoted" ü'}):
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        backwards = reversed(tensors.items())
        write_safetensors(ours, backwards, shapes, dtype=dtype, metadata=metadata)
        save_file(tensors, theirs, metadata=metadata)
        assert ours.read_bytes() == theirs.read_bytes()
        ours.unlink()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_dict_files_equal_those_of_torch(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = drawn(SIZES, dtype=dtype)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    ours, theirs = tmp_path / "x.pt", io.BytesIO()
    views = ((name, torch.stack([t, t])[1]) for name, t in tensors.items())  # of a larger storage
    write_pt(ours, views, shapes, dtype=dtype)
    torch.save(tensors, theirs)
    assert ours.read_bytes() == theirs.getvalue()
    assert zipfile.ZipFile(ours).testzip() is None
    found = torch.load(ours, weights_only=True)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_written_tensors_are_read_back(tmp_path: Path) -> None:
    tensors = drawn(SIZES, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    torch.save(tensors, tmp_path / "x.bin")
    for file in (SafetensorsFile(tmp_path / "x.safetensors"), TorchFile(tmp_path / "x.bin")):
        assert {*file} == {*tensors}
        assert all(torch.equal(file[name], tensor) for name, tensor in tensors.items())
        assert common_type(file.dtypes) == torch.bfloat16
    assert SafetensorsFile(tmp_path / "x.safetensors").metadata == {"a": "b"}


def test_common_dtype_represents_all_values() -> None:
    both = {"a": torch.float16, "b": torch.bfloat16}
    assert common_type(both) == torch.float32
    assert common_type({**both, "c": torch.float64}) == torch.float64
    with pytest.raises(ValueError, match="d is not of a floating point type of 16 to 64 bits"):
        common_type({**both, "d": None})
    with pytest.raises(ValueError, match="no tensors"):
        common_type({})


def test_values_out_of_range_are_rejected(tmp_path: Path) -> None:
    large, shapes = {"w": torch.tensor([1.0, -7e4])}, {"w": (2,)}
    with pytest.raises(
        UserError,
        match=r"^w contains 7e\+04, which is too large for float16; export with --dtype float32$",
    ):
        write_pt(tmp_path / "x", large.items(), shapes, dtype=torch.float16)
    write_pt(tmp_path / "y", large.items(), shapes, dtype=torch.bfloat16)
    nan = {"w": torch.tensor([torch.nan, torch.inf])}  # as they were trained
    write_pt(tmp_path / "z", nan.items(), shapes, dtype=torch.float16)


def test_wrong_shape_is_an_error(tmp_path: Path) -> None:
    for write in (write_pt, lambda *a, **k: write_safetensors(*a, **k, metadata={})):
        with pytest.raises(ValueError, match=r"^w has shape \[2, 3\], not \[3, 2\]$"):
            write(tmp_path / "x", [("w", torch.ones(2, 3))], {"w": (3, 2)}, dtype=torch.float32)
        (tmp_path / "x").unlink()


# Invalid files


def test_malicious_pickle_is_not_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path, planted = tmp_path / "x.bin", pickle.dumps({"wte.weight": MaliciousPickle()}, protocol=2)
    path.write_bytes(torch_file_of(planted))
    with pytest.raises(
        UserError, match=r"x\.bin contains more than tensors: .*nothing in it was executed; save"
    ):
        TorchFile(path)
    path.write_bytes(planted)
    with pytest.raises(UserError, match=r"x\.bin is in PyTorch's pre-1\.6 format; re-save it with"):
        TorchFile(path)
    assert not (tmp_path / "canary").exists()
    torch.load(io.BytesIO(torch_file_of(planted)), weights_only=False)  # it would have been
    assert (tmp_path / "canary").exists()


def test_file_without_a_state_dict_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.bin"
    for other in ([torch.ones(2)], {"a": 1}, {1: torch.ones(1)}):
        torch.save(other, path)
        with pytest.raises(
            UserError, match="is no state dict; save a dict that maps names to tensors"
        ):
            TorchFile(path)
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"x\.bin"):
        TorchFile(path)


def test_invalid_safetensors_file_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"x\.safetensors"):
        SafetensorsFile(path)
    save_file({"a": torch.ones(5)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"x\.safetensors: Error while deserializing header"):
        SafetensorsFile(path)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "is no index of shards"),
        ('{"weight_map": {"a": "../a.safetensors"}}', "names files outside its own folder"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names files outside its own folder"),
        (
            '{"weight_map": {"b": "a.safetensors"}}',
            "a.safetensors lacks b, which x.index.json lists",
        ),
        ('{"weight_map": {"a": "b.safetensors"}}', "b.safetensors"),
        ('{"weight_map": {"a": 1}}', "names files outside its own folder"),
    ],
)
def test_index_names_only_files_of_its_folder(index: str, message: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(5)}, tmp_path / "a.safetensors")
    path = tmp_path / "x.index.json"
    path.write_text(index)
    with pytest.raises(UserError, match=message):
        ShardedFiles(path, SafetensorsFile)
    path.write_text(json.dumps({"weight_map": {"a": "a.safetensors"}}))
    assert torch.equal(ShardedFiles(path, SafetensorsFile)["a"], torch.ones(5))


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_disk_that_fills_up_is_left_empty(kind: str, tmp_path: Path) -> None:
    tensors = {str(n): torch.ones(1 << 16) for n in range(8)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def write(path: Path, some: dict[str, Tensor]) -> None:
        if kind == "pt":
            write_pt(path, some.items(), shapes, dtype=torch.float32)
        else:
            write_safetensors(path, some.items(), shapes, dtype=torch.float32, metadata={})

    with mounted(tmp_path / "disk", "size=1m") as disk:
        with (
            pytest.raises(RunError, match=r"x cannot be written: ") as caught,
            atomic_path(disk / "x") as new,
        ):
            write(new, tensors)
        assert len(str(caught.value).splitlines()) == 1
        assert [*disk.iterdir()] == []
