"""Steps of a trainer that are counted, not timed: bytes alive and bytes moved, also of networks that fit no memory.

A step on fake tensors (shapes and dtypes without values) runs the trainer's own code, so that what it would keep and
move at the paper's size is known on any machine. Operations are those of PyTorch's eager mode on a CPU, with attention
that keeps no N x N matrix, as on a GPU. What a kernel needs inside itself is not seen.
"""

import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.vgg import RandomLPIPS
from models.perceptual import PerceptualLoss
from models.regularizers import REGULARIZERS, Regularizer, RegularizerOptions
from pipeline.config import Config
from pipeline.storage import open_storage
from pipeline.training import tokenizer
from pipeline.training.tokenizer import TokenizerTrainee
from pipeline.training.world import World

_STILL = (torch.ops.aten._unsafe_view.default,)  # a view of what nobody else has
_READ = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes of all storages that were made inside and are still referred to, and the most there were at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: int = 0
        self.peak: int = 0
        self._known = weakref.WeakSet[torch.UntypedStorage]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors((args, kwargs)):
            self._known.add(tensor.untyped_storage())  # what comes from outside is not counted
        for tensor in _tensors(made):
            self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class MovedBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The bytes that operations read and write: of all their tensors, once each; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if not (func.is_view or func in _STILL):
            self.total += sum(tensor.nbytes for tensor in _tensors((args, kwargs, made)))
        return made


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


class _Ones(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Answers 1 where a value is read, as that a gradient is finite."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return 1 if func in _READ else func(*args, **(kwargs or {}))


@contextmanager
def fake_trainee(config: Config) -> Iterator[TokenizerTrainee]:
    """The tokenizer's trainee on fake tensors, without a source of images, and with LPIPS as its perceptual term.

    What runs inside, such as a step, has no values; a number that is read is 1.
    """
    with (
        warnings.catch_warnings(action="ignore", category=UserWarning),  # of copies of fake tensors, for the average
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(nn.init, "trunc_normal_", nn.init.normal_),  # which asks for values
        patch.object(nn.Module, "_apply", lambda module, *_: module),  # all is fp32 on the CPU already
        patch.object(tokenizer, "training_images"),
        patch.object(tokenizer, "seeded", lambda build, *_: build()),
        patch.object(tokenizer, "REGULARIZERS", {name: _real(build) for name, build in REGULARIZERS.items()}),
        patch.object(TokenizerTrainee, "_perceptual", lambda _: PerceptualLoss([(RandomLPIPS(), 1.0)])),
    ):
        trainee = TokenizerTrainee(config, open_storage(config.root), defaultdict(MagicMock), World.alone())
        with _Ones():  # type: ignore[no-untyped-call]
            yield trainee


def _real(build: Callable[[RegularizerOptions], Regularizer]) -> Callable[[RegularizerOptions], Regularizer]:
    """Its matrices are small, and their shapes depend on values."""

    def built(options: RegularizerOptions) -> Regularizer:
        with unset_fake_temporarily():
            return build(options)

    return built


def fake_batch(config: Config, rows: int) -> tuple[Tensor, Tensor]:
    """Images and labels, as the loader gives them."""
    side = config.data.image_size
    return torch.zeros(rows, 3, side, side, dtype=torch.uint8), torch.zeros(rows, dtype=torch.long)
