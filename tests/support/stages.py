"""The stages of a plain run: those that exist in the quickstart, whose distances need no classifier of its own."""

from pipeline.config import load_config
from pipeline.workflow.graph import STAGES

PLAIN = [stage.name for stage in STAGES if stage.exists(load_config("quickstart"))]
