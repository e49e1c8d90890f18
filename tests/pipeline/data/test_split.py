from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.split import forced_training, split_of, without_training


def test_shares_are_stable_and_seeded() -> None:
    keys = [f"{i}.png" for i in range(4000)]
    chosen = {key for key in keys if split_of(key, 0, 0.1) == "validation"}
    assert 300 < len(chosen) < 500
    assert chosen < {key for key in keys if split_of(key, 0, 0.2) == "validation"}
    assert chosen != {key for key in keys if split_of(key, 1, 0.1) == "validation"}
    assert {split_of(key, 0, 1.0) for key in keys} == {"validation"}
    assert {split_of(key, 0, 0.0) for key in keys} == {"train"}


def trained(keys_by_label: dict[int, list[str]], seed: int, share: float) -> dict[int, set[str]]:
    forced = forced_training(keys_by_label, seed, share)

    def trains(key: str) -> bool:
        return key in forced or split_of(key, seed, share) == "train"

    return {label: {key for key in keys if trains(key)} for label, keys in keys_by_label.items()}


def keys_of(counts: Sequence[int]) -> dict[int, list[str]]:
    return {label: [f"class{label}/{i}.png" for i in range(count)] for label, count in enumerate(counts)}


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(0, 9), st.sampled_from([0.05, 0.25, 0.5, 0.9]))
def test_a_class_of_two_or_more_has_a_training_image(counts: list[int], seed: int, share: float) -> None:
    keys = keys_of(counts)
    found = trained(keys, seed, share)
    assert all(found[label] for label, own in keys.items() if len(own) >= 2)
    untrained = sum(1 for label, own in keys.items() if own and not found[label])
    assert untrained == without_training(keys, seed, share)


@given(st.lists(st.integers(2, 4), min_size=1, max_size=20), st.integers(0, 9))
def test_only_what_is_needed_is_forced(counts: list[int], seed: int) -> None:
    keys = keys_of(counts)
    for label, own in keys.items():
        drawn = {key for key in own if split_of(key, seed, 0.5) == "train"}
        forced = forced_training({label: own}, seed, 0.5)
        assert len(forced) == (0 if drawn else 1)
        smaller = [share / 100 for share in range(50, 0, -1)]
        first = next((share for share in smaller if any(split_of(key, seed, share) == "train" for key in own)), None)
        if forced and first is not None:  # it is among those that train first as the share gets smaller
            assert forced <= {key for key in own if split_of(key, seed, first) == "train"}


def test_a_new_image_moves_no_other_where_classes_train() -> None:
    keys = keys_of([50] * 5)
    before = trained(keys, 0, 0.3)
    keys[2].append("class2/new.png")
    after = trained(keys, 0, 0.3)
    assert all(before[label] == after[label] - {"class2/new.png"} for label in keys)
