"""The public layouts of SiT, written down from their description, and our network with the same weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.choices import PublicSit
from models.public_sit import from_public, public_network, public_shapes, to_public
from models.sit import SIT_SIZES, SiT
from tests.support.public_sit import HEADS, SMALL, Weights, public_sit, public_weights

KINDS: list[PublicSit] = ["sit", "repa", "sra"]


def ours(weights: Weights, kind: PublicSit) -> SiT:
    network = public_network(weights, HEADS)
    model = SiT(**network)
    model.load_state_dict(from_public(weights, kind, network))
    return model


def some_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(4, 4, 8, 8, generator=generator)
    return z, torch.tensor([0.0, 0.3, 0.77, 1.0]), torch.tensor([0, 3, 5, 1])


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_give_the_same_velocity(kind: PublicSit, patch: int, qk_norm: bool) -> None:
    """Ours at t is REPA's and SRA's at t, and the opposite of SiT's at 1 - t."""
    weights = public_weights(kind, qk_norm, **{**SMALL, "patch": patch})
    z, t, label = some_inputs()
    expected = -public_sit(weights, z, 1 - t, label) if kind == "sit" else public_sit(weights, z, t, label)
    assert expected.std() > 0.1
    torch.testing.assert_close(ours(weights, kind)(z, t, label), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_exported_is_what_was_imported(kind: PublicSit) -> None:
    """SiT's variances and what the others have for training are zero; its first layer of the time is turned twice."""
    weights = public_weights(kind, **SMALL)
    network = public_network(weights, HEADS)
    back = to_public(from_public(weights, kind, network), kind, network)
    assert {name: tensor.shape for name, tensor in back.items()} == {
        name: tensor.shape for name, tensor in weights.items()
    }
    for name, tensor in back.items():
        if name.startswith(("projectors.", "ap_head.")):
            assert not tensor.any()
        elif name.startswith("final_layer.linear.") and kind == "sit":
            velocity, variance = tensor.reshape(4, 2, 4, *tensor.shape[1:]).unbind(1)
            assert torch.equal(velocity, weights[name].reshape(4, 2, 4, *tensor.shape[1:])[:, 0])
            assert not variance.any()
        elif name == "t_embedder.mlp.0.weight" and kind == "sit":
            torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=0)
        else:
            torch.testing.assert_close(tensor, weights[name], atol=1e-6 if name == "pos_embed" else 0, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_of_ours_gives_our_velocity(kind: PublicSit) -> None:
    torch.manual_seed(2)
    model = SiT(grid=8, latent_dim=4, classes=5, width=24, depth=2, heads=HEADS, patch_size=2)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network = public_network(public_weights(kind, **{**SMALL, "depth": 2}), HEADS)
    theirs = to_public(model.state_dict(), kind, network)
    z, t, label = some_inputs()
    expected = -public_sit(theirs, z, 1 - t, label) if kind == "sit" else public_sit(theirs, z, t, label)
    torch.testing.assert_close(model(z, t, label), expected, atol=1e-5, rtol=1e-5)


def test_the_network_is_read_off_the_shapes() -> None:
    weights = public_weights("repa", True, **SMALL)
    expected = {
        "grid": 8, "latent_dim": 4, "classes": 5, "width": 24, "depth": 3, "heads": 2, "patch_size": 2,
        "qk_norm": True, "time_scale": 1.0,
    }  # fmt: skip
    assert public_network(weights) == expected, "the heads by the size of their norms"
    assert public_network(weights, heads=4)["heads"] == 4
    plain = public_weights("repa", **SMALL)
    with pytest.raises(ValueError, match="no SiT is 24 wide, so that its number of heads is not known"):
        public_network(plain)


@pytest.mark.parametrize(("width", "heads"), [(width, heads) for width, _, heads in SIT_SIZES.values()])
def test_the_heads_of_a_public_size_follow_from_its_width(width: int, heads: int) -> None:
    weights = public_weights("sit", **{**SMALL, "width": width, "depth": 1})
    assert public_network(weights)["heads"] == heads


def test_parameters_of_the_public_xl() -> None:
    """SiT-XL/2 of 256 pixels: 675,129,632, its variances and the frozen positions among them."""
    width, depth, heads = SIT_SIZES["XL"]
    network = {"grid": 32, "latent_dim": 4, "classes": 1000, "width": width, "depth": depth, "heads": heads,
               "patch_size": 2, "qk_norm": False, "time_scale": 1.0}  # fmt: skip
    assert sum(torch.Size(shape).numel() for shape in public_shapes("sit", network).values()) == 675_129_632


def test_the_blocks_of_early_repa_files_are_in_two_rows() -> None:
    weights = public_weights("repa", **SMALL)
    early = {name.replace("blocks.1.", "decoder_blocks.0.").replace("blocks.2.", "decoder_blocks.1."): tensor
             for name, tensor in weights.items()}  # fmt: skip
    assert "decoder_blocks.1.mlp.fc1.weight" in early
    inputs = some_inputs()
    assert torch.equal(ours(early, "repa")(*inputs), ours(weights, "repa")(*inputs))


def test_half_precision_is_turned_in_single() -> None:
    weights = {name: tensor.half() for name, tensor in public_weights("sit", **SMALL).items()}
    z, t, label = some_inputs()
    single = {name: tensor.float() for name, tensor in weights.items()}
    expected = -public_sit(single, z, 1 - t, label)
    torch.testing.assert_close(ours(weights, "sit")(z, t, label), expected, atol=1e-2, rtol=0)
    exact = -public_sit({**single, "pos_embed": public_weights("sit", **SMALL)["pos_embed"]}, z, 1 - t, label)
    torch.testing.assert_close(ours(weights, "sit")(z, t, label), exact, atol=1e-5, rtol=1e-5)


def test_positions_that_an_average_has_taken_along_are_known() -> None:
    """EMA 0.9999 in fp32 of what stays the same comes to lie beside it."""
    weights = public_weights("sra", **SMALL)
    average = weights["pos_embed"].clone()
    for _ in range(30_000):
        average.mul_(0.9999).add_(weights["pos_embed"], alpha=1 - 0.9999)
    assert (average - weights["pos_embed"]).abs().max() > 1e-5
    assert torch.equal(ours({**weights, "pos_embed": average}, "sra").positions, ours(weights, "sra").positions)


def without(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


def changed(name: str, *shape: int) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: torch.ones(shape)})


@pytest.mark.parametrize(
    ("kind", "spoil", "said"),
    [
        ("sit", without("x_embedder.proj.weight"), "no weights of a SiT: x_embedder.proj.weight is missing"),
        ("sit", without("pos_embed"), "no weights of a SiT: pos_embed is missing"),
        ("sit", changed("pos_embed", 16, 24), r"pos_embed is \(16, 24\)"),
        ("sit", changed("pos_embed", 1, 15, 24), r"pos_embed is \(1, 15, 24\), not \(1, 9, 24\)"),
        ("sit", changed("pos_embed", 1, 16, 24), "pos_embed is not the table of sines and cosines"),
        ("sit", without("blocks.1.mlp.fc2.bias"), r"blocks.1.mlp.fc2.bias \(24,\) is missing"),
        ("repa", changed("blocks.2.mlp.fc1.weight", 48, 24), r"fc1.weight is \(48, 24\), not \(96, 24\)"),
        ("repa", changed("blocks.2.attn.q_norm.weight", 12), r"q_norm.weight \(12,\), which a repa of this size lacks"),
        ("sra", changed("blocks.x.other", 3), r"blocks.3.attn.qkv.weight \(72, 24\) is missing"),
        ("sra", changed("other", 3), r"it has a tensor other \(3,\), which a sra of this size lacks"),
        ("sra", changed("final_layer.linear.weight", 32, 24), r"is \(32, 24\), not \(16, 24\) as in a sra"),
    ],
)
def test_what_is_no_such_file_is_refused(kind: PublicSit, spoil: Callable[[Weights], object], said: str) -> None:
    weights = public_weights(kind, **SMALL)
    spoil(weights)
    with pytest.raises(ValueError, match=said):
        ours(weights, kind)


@pytest.mark.parametrize(
    ("found", "kind", "said"),
    [
        ("sit", "repa", r"final_layer.linear.weight is \(32, 24\), not \(16, 24\) as in a repa"),
        ("repa", "sit", r"final_layer.linear.weight is \(16, 24\), not \(32, 24\) as in a sit"),
        ("repa", "sra", r"projectors.0.0.bias \(2048,\), which a sra"),
        ("sra", "repa", r"ap_head.linear1.bias \(48,\), which a repa"),
    ],
)
def test_another_kind_is_refused(found: PublicSit, kind: PublicSit, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ours(public_weights(found, **SMALL), kind)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("repa", {"time_scale": 1000.0}, "time_scale is 1000, and repa embeds t itself"),
        ("sit", {"qk_norm": True}, "qk_norm is on, and sit has no norms"),
    ],
)
def test_what_a_layout_has_no_place_for_is_refused(kind: PublicSit, changes: dict[str, object], said: str) -> None:
    weights = public_weights(kind, **SMALL)
    network = public_network(weights, HEADS)
    with pytest.raises(ValueError, match=said):
        to_public(from_public(weights, kind, network), kind, {**network, **changes})
