"""A SiT small enough for a test, and inputs that fit it."""

import torch

from models.sit import SiT


def sit(seed=0, trained=True, **changes):
    """A small SiT; `trained` gives the zero-initialized layers values."""
    torch.manual_seed(seed)
    model = SiT(**{"grid": 4, "latent_dim": 3, "classes": 5, "width": 16, "depth": 3, "heads": 2, **changes})
    if trained:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def inputs(batch=3):
    g = torch.Generator().manual_seed(7)
    z = torch.randn(batch, 3, 4, 4, generator=g)
    return z, torch.rand(batch, generator=g), torch.randint(6, (batch,), generator=g)
