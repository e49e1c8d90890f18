"""Suites: the paper's tables and figures, and tables of one's own, as sets of runs with their report.

A suite is a YAML file (`schema.py`); its runs are those of `python -m pipeline run`, so that they share what they can.
"""

from pipeline.suites.planning import make_suite_plan, print_suite_plan, surveyed
from pipeline.suites.report import render_suite, write_suite
from pipeline.suites.results import AtRoot, InFile, Results, measured
from pipeline.suites.runner import Way, run_suite
from pipeline.suites.runs import Asked, Run, chosen_rows, runs_of, scale_of
from pipeline.suites.schema import Suite, load_suite, suite_names
