"""The command line: one file per group of commands. Each command loads a config, calls other packages and prints.

`options` and `run_app` are also used by `python -m deploy`.
"""

from pipeline.cli.options import Debug, Preset, Root, Sets, run_app
