"""The objectives of both trainings are functions of (batch, draws): identities of their terms, and whose gradients."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.alignment import ALIGNMENTS, AlignedSiT
from models.choices import AlignmentKind, RegularizerKind
from models.discriminator import PatchDiscriminator, discriminator_hinge
from models.generator import LatentStatistics
from models.objective import SitBatch, SitDraws, SitObjective
from models.paths import PATHS, diffusion_loss_B, interpolate
from models.reconstruction import LossWeights, TokenizerDraws, TokenizerObjective, discriminator_loss
from models.regularizers import REGULARIZERS, Draw, RegularizerOptions
from models.sit import SiT
from models.spectral import LatentFilter
from models.tokenizers import DiagonalGaussian
from models.tokenizers.vit import Tokenizer

CLASSES, B = 3, 8
SHAPE = (2, 4, 4)
STATISTICS = LatentStatistics(mean=[0.5, -1.0], std=[2.0, 0.5])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(seed: int = 0, classes: int = CLASSES) -> SiT:
    """With random weights, the zero ones of a fresh SiT too."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sit = SiT(grid=4, latent_dim=2, classes=classes, width=16, depth=2, heads=2)
        for parameter in sit.parameters():
            nn.init.normal_(parameter, std=0.2)
    return sit


def sit_objective(
    kind: AlignmentKind = "none", label_dropout: float = 0.0, model: nn.Module | None = None
) -> SitObjective:
    alignment = ALIGNMENTS[kind](
        1, 2, weight=0.5, schedule="constant", loss="smooth_l1", head="mlp", levels=(0, 3), random_levels=False
    )
    if model is None:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = AlignedSiT(network(), alignment)
    return SitObjective(
        model, network(5), alignment, LatentFilter(4, "gain", 0.5), STATISTICS,
        path=PATHS["linear"], times="uniform", prediction="velocity", label_dropout=label_dropout, null_label=CLASSES,
    )  # fmt: skip


def sit_batch() -> SitBatch:
    mean_BDhw, logvar_BDhw = torch.randn(2, B, *SHAPE, generator=generator(1)).unbind(0)
    return SitBatch(DiagonalGaussian(mean_BDhw, logvar_BDhw), torch.arange(B) % CLASSES)


def sit_draws(levels: tuple[int, int] = (0, 3)) -> SitDraws:
    normal = torch.randn(2, B, *SHAPE, generator=generator(2))
    uniform = torch.rand(3, B, generator=generator(3))
    return SitDraws(levels, normal[0], normal[1], *uniform)


def part(batch: SitBatch, draws: SitDraws, rows: slice) -> tuple[SitBatch, SitDraws]:
    posterior = DiagonalGaussian(batch.posterior.mean_BDhw[rows], batch.posterior.logvar_BDhw[rows])
    return SitBatch(posterior, batch.label_B[rows]), SitDraws(draws.levels, *(draw[rows] for draw in draws[1:]))


class TestSit:
    @pytest.mark.parametrize("kind", ["none", "sra", "fda"])
    def test_the_terms_add_up(self, kind: AlignmentKind) -> None:
        terms = sit_objective(kind)(sit_batch(), sit_draws())
        assert ("alignment" in terms) == (kind != "none")
        torch.testing.assert_close(terms["loss"], terms["diffusion"] + terms.get("alignment", torch.zeros(())))
        sums, counts = torch.stack([terms[f"diffusion_t{quarter}"] for quarter in range(4)], 1)
        assert counts.sum() == B
        torch.testing.assert_close(sums.sum() / B, terms["diffusion"])
        assert [name for name, term in terms.items() if term.requires_grad] == ["loss"]

    def test_it_is_eq_5_on_the_normalised_latent_of_the_level(self) -> None:
        objective, batch, draws = sit_objective(), sit_batch(), sit_draws(levels=(2, 3))
        z_BDhw = batch.posterior.sample(draws.posterior_BDhw)
        z_BDhw = STATISTICS.normalise(LatentFilter(4, "gain", 0.5)(z_BDhw, 2))
        zt_BDhw = interpolate(PATHS["linear"], z_BDhw, draws.noise_BDhw, draws.t_B)
        predicted_BDhw = objective.model.sit(zt_BDhw, draws.t_B, batch.label_B)  # type: ignore[operator]
        expected = diffusion_loss_B(predicted_BDhw, draws.noise_BDhw - z_BDhw).mean()
        torch.testing.assert_close(objective(batch, draws)["loss"], expected)

    def test_a_network_that_knows_the_answer_has_no_loss(self) -> None:
        batch, draws = sit_batch(), sit_draws()
        z_BDhw = STATISTICS.normalise(batch.posterior.sample(draws.posterior_BDhw))

        class Knows(nn.Module):
            def forward(self, zt_BDhw: Tensor, t_B: Tensor, label_B: Tensor) -> tuple[Tensor, None]:
                return draws.noise_BDhw - z_BDhw, None

        assert sit_objective(model=Knows())(batch, draws)["loss"] == 0

    @pytest.mark.parametrize("kind", ["none", "sra", "fda"])
    def test_the_parts_of_the_ranks_mean_the_whole(self, kind: AlignmentKind) -> None:
        objective, batch, draws = sit_objective(kind), sit_batch(), sit_draws()
        whole = objective(batch, draws)["loss"]
        halves = [objective(*part(batch, draws, rows))["loss"] for rows in (slice(0, B // 2), slice(B // 2, B))]
        torch.testing.assert_close(torch.stack(halves).mean(), whole)

    def test_labels_that_are_all_dropped_do_not_matter(self) -> None:
        batch, draws = sit_batch(), sit_draws()
        others = batch._replace(label_B=(batch.label_B + 1) % CLASSES)
        kept, dropped = sit_objective(label_dropout=0.0), sit_objective(label_dropout=1.0)
        assert kept(batch, draws)["loss"] != kept(others, draws)["loss"]
        assert dropped(batch, draws)["loss"] == dropped(others, draws)["loss"]

    @pytest.mark.parametrize("kind", ["sra", "fda"])
    def test_the_teacher_gets_no_gradient(self, kind: AlignmentKind) -> None:
        objective = sit_objective(kind)
        objective(sit_batch(), sit_draws())["loss"].backward()
        assert all(parameter.grad is None for parameter in objective.teacher.parameters())
        assert all(parameter.grad is not None for parameter in objective.model.parameters() if parameter.requires_grad)


def tokenizer_objective(
    kind: RegularizerKind = "spectral", discriminator: nn.Module | None = None, weights: LossWeights | None = None
) -> TokenizerObjective:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = Tokenizer(image_size=16, patch_size=4, latent_dim=2, width=16, depth=1, heads=2, hidden=24)
        discriminator = discriminator or PatchDiscriminator(3, 8, 1)
    regularizer = REGULARIZERS[kind](RegularizerOptions(4))
    return TokenizerObjective(tokenizer, regularizer, weights or LossWeights(), None, discriminator)


def images() -> Tensor:
    return torch.rand(B, 3, 16, 16, generator=generator(4)) * 2 - 1


def tokenizer_draws(level: int = 2) -> TokenizerDraws:
    return TokenizerDraws(torch.randn(B, *SHAPE, generator=generator(5)), Draw(level=level))


class TestTokenizer:
    def test_level_0_is_the_plain_autoencoder(self) -> None:
        with_mlsr, plain = (
            made(images(), tokenizer_draws(0), uses_discriminator=True).terms
            for made in (tokenizer_objective("spectral"), tokenizer_objective("none"))
        )
        assert {name: term.item() for name, term in with_mlsr.items()} == {n: t.item() for n, t in plain.items()}

    def test_the_target_and_the_decoded_latent_are_of_the_same_level(self) -> None:
        objective, x_BCHW, draws = tokenizer_objective(), images(), tokenizer_draws(3)
        found = objective(x_BCHW, draws, uses_discriminator=False)
        assert torch.equal(found.target_BCHW, objective.regularizer.image(x_BCHW, draws.regularizer))
        posterior = objective.tokenizer.encode(x_BCHW)  # type: ignore[operator]
        z_BDhw = objective.regularizer.latent(posterior.sample(draws.noise_BDhw), draws.regularizer)
        torch.testing.assert_close(found.output_BCHW, objective.tokenizer.decode(z_BDhw))  # type: ignore[operator]

    def test_the_discriminator_gets_no_gradient_and_stays_trainable(self) -> None:
        objective = tokenizer_objective()
        objective(images(), tokenizer_draws(), uses_discriminator=True).terms["total"].backward()
        assert all(parameter.grad is None for parameter in objective.discriminator.parameters())
        assert all(parameter.requires_grad for parameter in objective.discriminator.parameters())
        assert all(parameter.grad is not None for parameter in objective.tokenizer.parameters())

    def test_the_adversarial_term_is_there_when_it_is_asked_for(self) -> None:
        objective = tokenizer_objective()
        without = objective(images(), tokenizer_draws(), uses_discriminator=False).terms
        with_it = objective(images(), tokenizer_draws(), uses_discriminator=True).terms
        assert with_it.keys() - without.keys() == {"adversarial"}
        difference = with_it["total"] - without["total"]
        torch.testing.assert_close(difference, 0.1 * with_it["adversarial"], atol=1e-6, rtol=1e-4)

    def test_the_discriminator_sees_images_from_0_to_1(self) -> None:
        seen: list[Tensor] = []
        objective = tokenizer_objective()
        objective.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        made = objective(images(), tokenizer_draws(), uses_discriminator=True)
        discriminator_loss(objective.discriminator, made.target_BCHW, made.output_BCHW)
        torch.testing.assert_close(seen[0], 0.5 * made.output_BCHW + 0.5)
        torch.testing.assert_close(seen[1], 0.5 * torch.cat([made.target_BCHW, made.output_BCHW]) + 0.5)

    def test_the_discriminators_loss_in_one_pass_is_that_of_two(self) -> None:
        discriminator, real_BCHW = PatchDiscriminator(3, 8, 1), images()
        fake_BCHW = real_BCHW.flip(0) * 0.5
        real_logits, fake_logits = (discriminator(0.5 * x_BCHW + 0.5) for x_BCHW in (real_BCHW, fake_BCHW))
        expected = discriminator_hinge(real_logits, fake_logits)
        torch.testing.assert_close(discriminator_loss(discriminator, real_BCHW, fake_BCHW), expected)

    def test_the_added_reconstruction_at_full_scale_is_the_plain_one(self) -> None:
        draws = tokenizer_draws()._replace(regularizer=Draw(added=Draw()))
        terms = tokenizer_objective("scale")(images(), draws, uses_discriminator=False).terms
        torch.testing.assert_close(terms["scale"], terms["mse"])

    def test_the_added_reconstruction_is_of_the_scaled_latent_and_image(self) -> None:
        weights = LossWeights(mse=2.0, l1=0.5, scale=0.25)
        objective, x_BCHW, seen = tokenizer_objective("scale", weights=weights), images(), list[Tensor]()
        objective.perceptual = lambda a, b: (a - b).square().mean()
        objective.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        draws = tokenizer_draws()._replace(regularizer=Draw(added=Draw(side=2)))
        with_it = objective(x_BCHW, draws, uses_discriminator=True)
        without = objective(x_BCHW, draws._replace(regularizer=Draw()), uses_discriminator=True)
        z_BDhw = objective.tokenizer.encode(x_BCHW).sample(draws.noise_BDhw)  # type: ignore[operator]
        small_BCHW = objective.tokenizer.decode(F.avg_pool2d(z_BDhw, 2))  # type: ignore[operator]
        error_BCHW = small_BCHW - F.avg_pool2d(x_BCHW, 2)
        expected = 2 * error_BCHW.square().mean() / 4 + 0.5 * error_BCHW.abs().mean() / 2 + error_BCHW.square().mean()
        torch.testing.assert_close(with_it.terms["scale"], expected)
        assert with_it.terms.keys() - without.terms.keys() == {"scale"}
        difference = with_it.terms["total"] - without.terms["total"]
        torch.testing.assert_close(difference, 0.25 * with_it.terms["scale"])
        assert torch.equal(with_it.target_BCHW, x_BCHW)
        torch.testing.assert_close(with_it.output_BCHW, without.output_BCHW)
        assert [tuple(image.shape[-2:]) for image in seen] == [(16, 16)] * 2, "D sees whole images alone"

    @pytest.mark.parametrize(
        ("kind", "name", "of_decoder"), [("scale", "scale", True), ("spectrum_prior", "spectrum", False)]
    )
    def test_an_added_term_has_gradients_for_what_made_it(
        self, kind: RegularizerKind, name: str, of_decoder: bool
    ) -> None:
        objective = tokenizer_objective(kind)
        draws = tokenizer_draws()._replace(regularizer=objective.regularizer.draw(generator(), B))
        objective(images(), draws, uses_discriminator=False).terms[name].backward()
        reached = {at for at, weight in objective.tokenizer.named_parameters() if weight.grad is not None}
        assert "patch_embed.weight" in reached
        assert ("pixel_head.weight" in reached) == of_decoder

    def test_the_priors_term_is_that_of_the_latent_which_is_decoded(self) -> None:
        objective, x_BCHW, draws = tokenizer_objective("spectrum_prior"), images(), tokenizer_draws(0)
        with_it = objective(x_BCHW, draws, uses_discriminator=False).terms
        z_BDhw = objective.tokenizer.encode(x_BCHW).sample(draws.noise_BDhw)  # type: ignore[operator]
        torch.testing.assert_close(with_it["spectrum"], objective.regularizer.penalties(z_BDhw, x_BCHW)["spectrum"])
        without = tokenizer_objective("none")(x_BCHW, draws, uses_discriminator=False).terms
        torch.testing.assert_close(with_it["total"] - without["total"], 0.01 * with_it["spectrum"])

    @pytest.mark.parametrize("kind", ["scale", "spectrum_prior"])
    def test_added_terms_are_fp32_under_bf16(self, kind: RegularizerKind) -> None:
        objective = tokenizer_objective(kind)
        draw = objective.regularizer.draw(generator(), B)
        with torch.autocast("cpu", torch.bfloat16):
            made = objective(images(), tokenizer_draws()._replace(regularizer=draw), uses_discriminator=True)
        assert {term.dtype for term in made.terms.values()} == {torch.float32}


def _sit() -> Tensor:
    return sit_objective("fda", 0.1)(sit_batch(), sit_draws())["loss"]


def _tokenizer() -> Tensor:
    return tokenizer_objective()(images(), tokenizer_draws(), uses_discriminator=True).terms["total"]


@pytest.mark.parametrize("objective", [_sit, _tokenizer])
def test_nothing_is_random_but_the_draws(objective: Callable[[], Tensor]) -> None:
    torch.manual_seed(1)
    first, state = objective(), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(objective(), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)
