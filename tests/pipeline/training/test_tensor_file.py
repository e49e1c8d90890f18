"""Files of tensors: the bytes that safetensors writes, from a copy or tensor by tensor."""

from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.training.tensor_file import HostBuffer, file_blocks

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64,
]  # fmt: skip


def tensor_of(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    """Random bits, as NaNs too, in a tensor that is not contiguous from two dimensions on."""
    width = torch.empty(0, dtype=dtype).element_size()
    count = torch.Size(shape).numel() * width
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2 if dtype == torch.bool else 256, (count,), dtype=torch.uint8, generator=generator)
    return bits.view(dtype).view(shape[::-1]).permute(tuple(reversed(range(len(shape)))))


tensors = st.builds(tensor_of, st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 99))


@given(st.dictionaries(st.text(max_size=5), tensors, max_size=6))
def test_the_bytes_are_those_of_safetensors(named: dict[str, Tensor]) -> None:
    expected = safetensors.torch.save({name: tensor.contiguous() for name, tensor in named.items()})
    assert b"".join(HostBuffer().copy(named)) == expected
    assert b"".join(file_blocks(named)) == expected


def test_a_dtype_that_the_format_lacks_is_named() -> None:
    with pytest.raises(TypeError, match=r"b: torch\.complex128 cannot be stored"):
        HostBuffer().copy({"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.complex128)})


def test_the_memory_of_a_copy_is_used_again() -> None:
    buffer = HostBuffer()
    addresses = set()
    for size in (10, 10, 4, 10):
        (_, body) = buffer.copy({"a": torch.full((size,), float(size))})
        assert torch.frombuffer(body, dtype=torch.float32).tolist() == [float(size)] * size
        addresses.add(torch.frombuffer(body, dtype=torch.uint8).data_ptr())
    assert len(addresses) == 1


class Runtime:
    """Stands for CUDA's: what is pinned, by address."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.pinned = code, dict[int, int]()

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # CUDA's name
        if not self.code:
            self.pinned[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0


class OnGpu(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def test_copies_from_a_gpu_go_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly as much as the state needs; given back before more is taken."""
    runtime, waited = Runtime(), list[Any]()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    buffer = HostBuffer()
    for size in (10, 10, 30):
        buffer.copy({name: torch.zeros(size).as_subclass(OnGpu) for name in "ab"})
        assert list(runtime.pinned.values()) == [2 * 4 * (30 if size == 30 else 10)]
    assert len(waited) == 3, "once a copy"
    del buffer
    assert not runtime.pinned


def test_memory_that_cannot_be_pinned_serves_too(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Runtime(code=2))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    buffer = HostBuffer()
    for _ in range(2):
        (_, body) = buffer.copy({"a": torch.ones(3).as_subclass(OnGpu)})
        assert torch.frombuffer(body, dtype=torch.float32).tolist() == [1, 1, 1]
    assert caplog.text.count("not pinned: cudaHostRegister returned 2") == 1
