"""A GPU that is not there: tensors that say they are on `cuda:0`, with shapes and dtypes but without values.

An operation raises where a tensor of the CPU meets one of the GPU, and where the host would have to wait for a value.
What PyTorch asks of a real GPU has stand-ins here: generators, the backward pass, the move of a network to the GPU.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from models.alignment import Alignment, FrequencyAware
from models.regularizers import Regularizer
from pipeline.training import sit, tokenizer

GPU = torch.device("cuda:0")

# What CUDA has no deterministic kernel for, by the documentation of `torch.use_deterministic_algorithms`: operations,
# and those of which only the derivative is concerned, by the first letters of its node's name.
UNREPEATABLE = {
    "max_unpool2d", "max_unpool3d", "nll_loss_forward", "nll_loss2d_forward", "put_", "put", "histc", "bincount",
    "median", "kthvalue", "_ctc_loss",
}  # fmt: skip
UNREPEATABLE_DERIVATIVES = (
    "AvgPool3D", "AdaptiveAvgPool2D", "AdaptiveAvgPool3D", "AdaptiveMaxPool2D", "FractionalMaxPool", "MaxUnpool",
    "UpsampleLinear", "UpsampleBilinear", "UpsampleBicubic", "UpsampleTrilinear", "ReflectionPad", "CtcLoss",
    "NllLoss", "EmbeddingBag", "GridSampler", "Put",
)  # fmt: skip


class FakeGPU:
    """The mode under which it exists. Networks are moved to it by `.to(GPU)`, also outside of the mode."""

    def __init__(self) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.derivatives = set[str]()  # the nodes of all backward passes

    def backward(self, loss: Tensor) -> None:
        """Stands for `torch.autograd.backward`, which asks for CUDA: gives each leaf of the graph a gradient."""
        assert loss.grad_fn is not None
        seen, ahead = set[Any](), list[Any]([loss.grad_fn])
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            ahead += [following for following, _ in node.next_functions]
            if hasattr(node, "variable"):
                node.variable.grad = torch.zeros_like(node.variable)
        self.derivatives |= {node.name() for node in seen}

    def unrepeatable(self, operations: set[str]) -> list[str]:
        """What of these operations, and of the backward passes up to now, a GPU computes otherwise each time."""
        derivatives = [name for name in self.derivatives if name.startswith(UNREPEATABLE_DERIVATIVES)]
        return sorted(operations & UNREPEATABLE) + sorted(derivatives)

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU, on this GPU."""
        with self.mode:
            return self.mode.from_tensor(tensor).to(GPU)

    def convert(self, module: nn.Module, function: Callable[[Tensor], Tensor]) -> nn.Module:
        """`nn.Module._apply`, by new parameters: those of fake tensors cannot be changed in place."""
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    moved = self._converted(parameter.detach(), function)
                    part._parameters[name] = nn.Parameter(moved, requires_grad=parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = self._converted(buffer, function)
        return module

    def _converted(self, tensor: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        with self.mode:
            return function(tensor if isinstance(tensor, FakeTensor) else self.mode.from_tensor(tensor))


class Reading(TorchDispatchMode):
    """Allows to read values, as stages do between their batches: every number that is read is 1."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default):
            return {torch.bool: False}.get(args[0].dtype, 1)
        return func(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Notes the names of the operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _on_host(function: Callable[..., Any]) -> Callable[..., Any]:
    def real(*arguments: Any, **named: Any) -> Any:
        with unset_fake_temporarily():
            return function(*arguments, **named)

    return real


@contextmanager
def fake_gpu() -> Iterator[FakeGPU]:
    """While it lasts, networks can be moved to `GPU`. What uses their values' shapes runs under `FakeGPU.mode`."""
    gpu = FakeGPU()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "_apply", lambda module, function, recurse=True: gpu.convert(module, function))
        patch.setattr(torch.autograd, "backward", gpu.backward)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        for trainer in (sit, tokenizer):
            on_cpu = trainer.generator
            patch.setattr(
                trainer, "generator", lambda *key, on_cpu=on_cpu: on_cpu(*key) if key[-1].type == "cpu" else None
            )
        kinds: list[type[Regularizer]] = [Regularizer, *Regularizer.__subclasses__()]
        for kind in kinds:
            patch.setattr(kind, "draw", _on_host(kind.draw))  # they draw on the host, so their values are known
        for alignment in (Alignment, FrequencyAware):
            patch.setattr(alignment, "draw_levels", _on_host(alignment.draw_levels))
        gpu.put(torch.zeros(1))  # PyTorch looks for the driver at the first tensor, if it is told that there is a GPU
        yield gpu
