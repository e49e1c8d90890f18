"""The Inception network of FID, sFID and the Inception Score, from torch-fidelity, which includes the TF1 port.

The caller passes the weight file; nothing is downloaded here.
"""

import io
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_SPATIAL_CHANNELS = 7


class InceptionOutput(NamedTuple):
    """Features, all fp32."""

    pool_BF: Tensor
    """(B, 2048): `pool_3`, for FID, precision and recall."""
    spatial_BF: Tensor
    """(B, 17*17*7): `mixed_6/conv:0`, first 7 channels, flattened height, width, channel: for sFID."""
    logits_BK: Tensor
    """(B, 1008): without the bias, for the Inception Score, as in the ADM evaluator."""


class Inception(nn.Module):
    """FID's Inception-v3 (TF weights of 2015-12-05), frozen, with TF1's bilinear resize to 299 pixels.

    Args:
        path: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth` as safetensors.

    Raises:
        ValueError: the file is not a state dict of that network.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.network = _network()
        try:
            self.network.load_state_dict(load_file(path))
        except (RuntimeError, SafetensorError) as error:
            raise ValueError(f"{path} does not contain the weights of FID's Inception network") from error
        self._spatial: list[Tensor] = []
        # TF's mixed_6/conv:0 is the convolution itself, before its batch norm.
        self.network.Mixed_6d.branch1x1.conv.register_forward_hook(self._keep_spatial)

    def _keep_spatial(self, _module: nn.Module, _inputs: tuple[Tensor, ...], output_BChw: Tensor) -> None:
        self._spatial.append(output_BChw[:, :_SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).float())

    @torch.no_grad()
    def forward(self, x_BCHW: Tensor) -> InceptionOutput:
        """uint8 RGB images of any size; run it outside autocast."""
        self._spatial.clear()
        pool_BF, logits_BK = self.network(x_BCHW)
        return InceptionOutput(pool_BF, self._spatial.pop(), logits_BK)


def inception_layout() -> dict[str, Tensor]:
    """Names and shapes of the network's tensors, on the meta device."""
    with torch.device("meta"):
        return dict(_network().state_dict())


def _network() -> Any:
    """torch-fidelity's network with random weights; it only offers to unpickle a file, or to download one."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):  # type: ignore[misc]
        def load_state_dict(self, state_dict: dict[str, Tensor], **_: Any) -> Any:
            return super().load_state_dict(state_dict, strict=bool(state_dict))

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    return Unloaded("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=empty)
