"""Data: listing and reading a source, decoding, shards, their local mirror, the order of examples, batches.

Listing and index are light; modules that need pyarrow or Pillow are imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.data.classes import check_folders, check_labels
from pipeline.data.endings import ENDINGS, ending_of, is_ignored
from pipeline.data.index import (
    checked_listing,
    index_source,
    known_classes,
    read_index,
    recorded_revision,
    revision_of,
)
from pipeline.data.listing import DIGITS, Listing
from pipeline.data.revision import Listener
from pipeline.data.split import Split
from pipeline.lazy import lazy

if TYPE_CHECKING:
    from pipeline.data.chunks import Chunk, Decoding, chunk_rows, decoded_chunks
    from pipeline.data.decode import Pixels, UnreadableImage, decode_image, transform
    from pipeline.data.folders import FolderUnit
    from pipeline.data.loader import ImageLoader, LatentLoader, Plan
    from pipeline.data.mirror import Mirror, StoredShard, mirror_directory, open_mirror
    from pipeline.data.parquet_columns import image_column, label_column
    from pipeline.data.prepare import PreparedUnit, broken_links, check_prepared, prepare_unit
    from pipeline.data.prepared import Rows, choose_rows, read_images, spaced, thinned
    from pipeline.data.shards import latent_record, write_latent_shard
    from pipeline.data.sources import Exceptions, Unit, class_names, exceptions_of, listed_tars, work_units
    from pipeline.data.store import IMAGE_COLUMNS, LATENT_COLUMNS, ImageStore, Labels, LatentStore
    from pipeline.data.tars import TarIndex, TarUnit, index_tar
else:
    __getattr__ = lazy(
        __name__,
        chunks="Chunk Decoding chunk_rows decoded_chunks",
        decode="Pixels UnreadableImage decode_image transform",
        folders="FolderUnit",
        loader="ImageLoader LatentLoader Plan",
        mirror="Mirror StoredShard mirror_directory open_mirror",
        parquet_columns="image_column label_column",
        prepare="PreparedUnit broken_links check_prepared prepare_unit",
        prepared="Rows choose_rows read_images spaced thinned",
        shards="latent_record write_latent_shard",
        sources="Exceptions Unit class_names exceptions_of listed_tars work_units",
        store="IMAGE_COLUMNS LATENT_COLUMNS ImageStore Labels LatentStore",
        tars="TarIndex TarUnit index_tar",
    )
