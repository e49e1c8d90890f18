"""The command line: one file per group of commands. Each command loads a config, calls other packages and prints.

What stands here is also used by `python -m deploy`.
"""

from pipeline.cli.options import Debug, Expect, Preset, Root, Sets, Wait, run_app
from pipeline.cli.suite import AtOnce, ResultsFile, Rows, Scale, Seeds, SuiteName, To, make_suite, open_suite
