"""AdamW and one step of it that never waits for the device: a non-finite gradient is skipped on the device itself.

Learning rates and what is trained are the caller's.
"""

import torch
from torch import Tensor, nn


def adamw(
    network: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW of what a network trains, in one kernel on a GPU (`fused`), in PyTorch's reference form on a CPU.

    As in DeTok, `weight_decay` reaches neither vectors (biases, gains of norms) nor embeddings and tables of positions.
    """
    trained = [(name, parameter) for name, parameter in network.named_parameters() if parameter.requires_grad]
    decayed = [parameter for name, parameter in trained if _decays(name, parameter)]
    others = [parameter for name, parameter in trained if not _decays(name, parameter)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, learning_rate, betas, fused=trained[0][1].device.type == "cuda")


def _decays(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not any(word in name for word in ("embed", "positions"))


def clip_gradient(parameters: list[nn.Parameter], clip: float) -> Tensor:
    """Scale the gradient down to a norm of at most `clip`. Returns whether it is finite: a bool scalar on its device.

    Ranks agree without a message: DDP has given all of them the same gradient, and with it the same norm.
    """
    return torch.isfinite(nn.utils.clip_grad_norm_(parameters, clip))


def step_if(made: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Step where `made`, a bool scalar on the parameters' device; else leave parameters and state as they are.

    The gradient is freed. `optimizer` is fused where the parameters are on a GPU: the host does not learn there whether
    the step is made.
    """
    if optimizer.defaults["fused"]:
        # The kernel skips its work where `found_inf` is 1, as for `torch.amp.GradScaler`.
        optimizer.found_inf = (~made).float()  # type: ignore[attr-defined]
        optimizer.step()
        del optimizer.found_inf  # type: ignore[attr-defined]
    elif made:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
