"""Files of safetensors: what is written is read, and what the system says is an error of its own."""

import errno
import resource
from pathlib import Path

import pytest
import torch

from models.tensor_files import read_tensors, write_tensors


def test_there_and_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(3)}
    write_tensors(tmp_path / "file", tensors)
    found = read_tensors(tmp_path / "file")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    """As on a full disk: here no file may be larger than 1,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_tensors(tmp_path / "file", {"a": torch.zeros(1000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG


def test_no_file_of_safetensors(tmp_path: Path) -> None:
    for content, said in ((b"<html>", "is not a file of safetensors"), (b"version https://git-lfs\n", "Git LFS")):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(ValueError, match=said):
            read_tensors(tmp_path / "file")
