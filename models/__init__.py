"""The paper's networks, operators, losses, samplers and metrics, as functions of tensors.

No Ray, MLflow, config files or network access, and no paths except weight files passed by the caller. This module,
`choices` and `sizes` import no torch, so that planning starts fast. The modules import each other relatively, since a
registered model contains a copy of the package under another name.
"""
