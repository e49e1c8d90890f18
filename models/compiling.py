"""torch.compile of transformer blocks. When to compile is the caller's decision."""

import torch
from torch import nn

_GRAPHS = 256  # of one block's code; EQ-VAE alone has as many shapes as sides


def compile_blocks(network: nn.Module) -> None:
    """torch.compile each transformer block separately: one small graph, compiled once for all of them.

    A graph is made for each shape, at its first use, since graphs of one shape are the fastest. Whatever cannot be
    compiled raises an error at that use, of torch._dynamo or torch._inductor: nothing falls back to eager execution.
    """
    torch._dynamo.config.recompile_limit = _GRAPHS
    torch._dynamo.config.accumulated_recompile_limit = 8 * _GRAPHS
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in network.modules():
        if type(module).__name__ == "Block":
            module.compile(fullgraph=True, dynamic=False)
