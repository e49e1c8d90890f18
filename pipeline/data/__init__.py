"""Data: listing and reading a source, decoding, shards, their local mirror, the order of examples, batches.

Listing and index are light; modules that need pyarrow or Pillow are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.data.classes import check_folders, check_labels
from pipeline.data.index import (
    known_classes,
    read_index,
    recorded_revision,
    revision_of,
    write_index,
)
from pipeline.data.listing import DIGITS, Split, list_source
from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.data.decode import Pixels, UnreadableImage, decode_image, transform
    from pipeline.data.folders import FolderUnit
    from pipeline.data.loader import ImageLoader, LatentLoader, Plan
    from pipeline.data.mirror import Mirror, StoredShard, mirror_directory, open_mirror
    from pipeline.data.prepare import PreparedUnit, check_prepared, prepare_unit
    from pipeline.data.prepared import Rows, choose_rows, read_images
    from pipeline.data.shards import write_latent_shard
    from pipeline.data.sources import Unit, work_units
    from pipeline.data.store import IMAGE_COLUMNS, LATENT_COLUMNS, ImageStore, Labels, LatentStore
    from pipeline.data.tars import TarUnit
else:
    __getattr__ = lazy(
        __name__,
        decode="Pixels UnreadableImage decode_image transform",
        folders="FolderUnit",
        loader="ImageLoader LatentLoader Plan",
        mirror="Mirror StoredShard mirror_directory open_mirror",
        prepare="PreparedUnit check_prepared prepare_unit",
        prepared="Rows choose_rows read_images",
        shards="write_latent_shard",
        sources="Unit work_units",
        store="IMAGE_COLUMNS LATENT_COLUMNS ImageStore Labels LatentStore",
        tars="TarUnit",
    )
