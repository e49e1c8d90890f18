"""The graph of stages: dependencies, fingerprints, cache status, plan and runner.

Planning is light: torch, ray and mlflow are imported only when a stage has to run.
"""

from pipeline.workflow.champion import from_champion
from pipeline.workflow.context import StageContext, Work
from pipeline.workflow.costs import sit_gflops, sit_sizes, tokenizer_step_gflops
from pipeline.workflow.fingerprints import stage_fingerprints
from pipeline.workflow.graph import NAMES, SECTIONS, STAGES, find_stage, section_of, stages_until
from pipeline.workflow.imported import ImportUse, SourceKind, import_tokenizer, preset_lines
from pipeline.workflow.imported_sit import import_sit, public_kind, sit_preset_lines
from pipeline.workflow.importing import check_not_imported
from pipeline.workflow.lineage import config_of, find_artifact, unneeded
from pipeline.workflow.longer import shorter_training, steps_of
from pipeline.workflow.planning import make_plan, print_plan
from pipeline.workflow.preflight import check_compared, check_labelled, check_reconstructed
from pipeline.workflow.resolve import check_expected, check_inputs, index_now, resolved
from pipeline.workflow.runner import Runner, repair
from pipeline.workflow.starts import remembered_start, start_of, whole_start_sets
from pipeline.workflow.status import Node, artifacts_of, survey
from pipeline.workflow.work_folder import checkpoint_step
