"""The names of the alternatives, and the dicts that hold them: each name has its alternative, and no other is there."""

from collections.abc import Mapping
from typing import Any, get_args

import pytest

from models import choices
from models.alignment import ALIGNMENTS, FEATURE_LOSSES, SCHEDULES
from models.paths import PATHS, TIMES
from models.regularizers import REGULARIZERS
from models.sampler import SAMPLERS
from models.sizes import _SIZES
from models.tokenizers import TOKENIZERS
from pipeline.config.kinds import KIND_FIELDS
from pipeline.evaluation.networks import FEATURE_NETWORKS

KINDS: dict[str, tuple[Any, Mapping[Any, Any]]] = {
    "tokenizers": (choices.TokenizerKind, TOKENIZERS),
    "packages of a tokenizer": (choices.TokenizerKind, choices.TOKENIZER_PACKAGES),
    "sizes of a tokenizer": (choices.TokenizerKind, _SIZES),
    "fields of a tokenizer": (choices.TokenizerKind, KIND_FIELDS),
    "regularizers": (choices.RegularizerKind, REGULARIZERS),
    "alignments": (choices.AlignmentKind, ALIGNMENTS),
    "defaults of the alignments": (choices.AlignmentKind, choices.ALIGNMENT_DEFAULTS),
    "schedules of the alignment": (choices.AlignmentSchedule, SCHEDULES),
    "losses of features": (choices.FeatureLoss, FEATURE_LOSSES),
    "samplers": (choices.SamplerMethod, SAMPLERS),
    "evaluations of a sampler": (choices.SamplerMethod, choices.EVALUATIONS),
    "paths": (choices.PathKind, PATHS),
    "distributions of times": (choices.TimeDistribution, TIMES),
    "feature networks": (choices.FeatureNetwork, FEATURE_NETWORKS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_alternatives_agree(kind: str) -> None:
    names, alternatives = KINDS[kind]
    assert set(get_args(names)) == set(alternatives)
