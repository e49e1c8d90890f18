import pytest
import torch

from models.discriminator import PatchDiscriminator, discriminator_hinge, generator_hinge


@pytest.mark.parametrize(("size", "layers"), [(12, 2), (32, 2), (24, 3), (32, 3), (64, 3)])
def test_gives_patch_logits(size, layers):
    logits = PatchDiscriminator(width=8, layers=layers)(torch.zeros(2, 3, size, size))
    assert logits.shape[:2] == (2, 1)
    assert logits.numel() > 0
    assert logits.dtype == torch.float32


def test_an_image_too_small_is_refused():
    with pytest.raises(ValueError, match="24 pixels"):
        PatchDiscriminator(width=8)(torch.zeros(1, 3, 23, 23))


def test_no_batch_statistics():
    torch.manual_seed(0)
    model = PatchDiscriminator(width=8, layers=2)
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), atol=1e-6, rtol=1e-5)
    x[0] = 100.0
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), atol=1e-6, rtol=1e-5)
    assert not list(model.buffers())


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
    assert discriminator_hinge(real, fake).item() == pytest.approx(0.5 * (0.25 + 1.0))
    assert generator_hinge(fake).item() == pytest.approx(1.0)
    assert discriminator_hinge(torch.tensor([1.0]), torch.tensor([-1.0])).item() == 0


def test_learns_to_tell_apart():
    torch.manual_seed(0)
    model = PatchDiscriminator(width=8, layers=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    real, fake = torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16).repeat_interleave(2, 3)[..., :16]
    losses = []
    for _ in range(30):
        loss = discriminator_hinge(model(real), model(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
