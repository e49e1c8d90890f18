"""Pretrained weights of others: a catalogue of public files, how they are fetched, and where they lie here.

A config names weights (`vgg16`); `weights.yaml`, beside the files, says which file that is. Only the file's sha256
counts in a fingerprint. torch is imported where a file is converted.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy
from pipeline.weights.catalogue import CATALOGUE, Entry, find_entry
from pipeline.weights.fitting import check_file
from pipeline.weights.local import fetch_weights
from pipeline.weights.names import check_known, missing_weights, resolve_weights, wanted
from pipeline.weights.recorded import place_of, read_recorded
from pipeline.weights.used import weights_used

if TYPE_CHECKING:
    from pipeline.weights.convert import load_state
    from pipeline.weights.fetching import check, fetch
else:
    __getattr__ = lazy(__name__, convert="load_state", fetching="check fetch")
