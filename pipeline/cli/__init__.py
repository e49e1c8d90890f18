"""The command line: one file a group of commands. Each reads a config, calls one function of a room and prints.

`options` and `run_app` serve `python -m deploy` too.
"""

from pipeline.cli.options import Debug, Preset, Root, Sets, run_app
