"""safetensors files without a second copy of the tensors: written from one buffer that is laid out as the file is.

The bytes are those that the safetensors package writes, which reads them too. Where they are stored is not known here.
"""

import json
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

# By falling alignment, the order in which safetensors stores them.
_NAMES = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {dtype: index for index, dtype in enumerate(_NAMES)}


class Span(NamedTuple):
    """The bytes of a tensor in a file, counted from the end of the header."""

    begin: int
    end: int


def layout(tensors: Mapping[str, Tensor]) -> tuple[bytes, dict[str, Span]]:
    """The header of a safetensors file, and where each tensor lies behind it, in the order of the file.

    TypeError for a dtype that the format does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"{name}: {tensor.dtype} cannot be stored in a safetensors file")
    spans, table, end = dict[str, Span](), dict[str, object](), 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (_ORDER[item[1].dtype], item[0])):
        spans[name] = Span(end, end := end + tensor.numel() * tensor.element_size())
        table[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": list(spans[name])}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, spans


def file_blocks(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """A safetensors file as blocks, one tensor at a time: of tensors on a device, one is in main memory at a time."""
    header, spans = layout(tensors)
    yield memoryview(header)
    for name in spans:
        yield _bytes_of(tensors[name].detach().cpu().contiguous())


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class HostBuffer:
    """Main memory for one copy of a state, used again for the next one. Pinned if a tensor is on a GPU."""

    def __init__(self) -> None:
        self._memory, self._pinned = torch.empty(0, dtype=torch.uint8), False
        self._unpin: Callable[[], object] = lambda: None

    def copy(self, tensors: Mapping[str, Tensor]) -> list[memoryview]:
        """A safetensors file with a copy of the tensors, as blocks that are valid until the next call.

        The copies from a GPU are queued together and waited for once.
        """
        header, spans = layout(tensors)
        devices = {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        memory = self._room(max((span.end for span in spans.values()), default=0), bool(devices))
        for name, (begin, end) in spans.items():
            tensor = tensors[name].detach()
            memory[begin:end].view(tensor.dtype).view(tensor.shape).copy_(tensor, non_blocking=True)
        for device in devices:
            torch.cuda.synchronize(device)
        return [memoryview(header), _bytes_of(memory)]

    def _room(self, size: int, pinned: bool) -> Tensor:
        if self._memory.numel() < size or pinned > self._pinned:
            self._unpin()
            self._memory = torch.empty(0, dtype=torch.uint8)  # free the old one before the new one is allocated
            self._memory, self._pinned = torch.empty(size, dtype=torch.uint8), pinned
            self._unpin = _pin(self._memory) if pinned else lambda: None
        return self._memory[:size]


def _pin(memory: Tensor) -> Callable[[], object]:
    """Pin memory in place; returns what undoes it. torch's pinned allocator would round up to a power of two."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr()
    code = int(runtime.cudaHostRegister(address, memory.numel(), 1))
    if code:
        _log.warning("checkpoints are copied through memory that is not pinned: cudaHostRegister returned %d", code)
        return lambda: None
    return weakref.finalize(memory, runtime.cudaHostUnregister, address)
