"""The paper as tensors in, tensors out: networks, operators, losses, samplers and metrics.

No Ray, no MLflow, no configuration files, no network, and no paths but those of weight files a caller passes in.
This package, `choices` and `sizes` import no torch, so that a plan costs no start-up. The modules import each other
relatively: a registered model carries them under a name of its own.
"""
