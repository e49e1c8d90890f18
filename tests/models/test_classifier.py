"""The small classifier: the same weights from the same arguments, and classes that it tells apart."""

import pytest
import torch

from models.classifier import FEATURES, Classifier, train_classifier


def spots(count: int, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright spot in one of four corners: the label."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (count, 3, size, size), generator=generator, dtype=torch.uint8)
    labels = torch.arange(count) % 4
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = (label // 2) * (size - 4), (label % 2) * (size - 4)
        image[:, row : row + 4, column : column + 4] = 255
    return images, labels


def test_it_learns_and_comes_out_the_same():
    images, labels = spots(400)
    network = train_classifier(images, labels, 4, flip=False, seed=3)
    again = train_classifier(images, labels, 4, flip=False, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    features, logits = network(images)
    assert features.shape == (400, FEATURES)
    assert (logits.argmax(1) == labels).double().mean() > 0.95
    other = train_classifier(images[:200], labels[:200], 4, flip=False, seed=4)
    assert not torch.equal(other.head.weight, network.head.weight)


def test_flips_hide_left_from_right():
    images, labels = spots(400)
    flipped = train_classifier(images, labels, 4, flip=True, seed=3)
    assert (flipped(images).logits_BK.argmax(1) == labels).double().mean() < 0.75


@pytest.mark.parametrize("size", [6, 32, 45, 100])
def test_images_of_any_size(size):
    features, logits = Classifier(5)(torch.zeros(2, 3, size, size, dtype=torch.uint8))
    assert features.shape == (2, FEATURES)
    assert logits.shape == (2, 5)
