"""The precision of evaluation: what runs inside, and that nothing of it stays behind."""

import pytest
import torch

from models.choices import EvaluationPrecision
from pipeline.evaluation import tensor_cores, tokenizer_autocast


@pytest.mark.parametrize(("precision", "tf32", "bf16"), [("fp32", 0, 0), ("tf32", 1, 0), ("bf16", 1, 1)])
def test_precision(precision: EvaluationPrecision, tf32: bool, bf16: bool) -> None:
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [part.allow_tf32 for part in flags]
    with tensor_cores(precision), tokenizer_autocast(precision, torch.device("cpu")):
        assert [part.allow_tf32 for part in flags] == [tf32, tf32]
        assert torch.is_autocast_enabled("cpu") == bf16
    assert [part.allow_tf32 for part in flags] == before
