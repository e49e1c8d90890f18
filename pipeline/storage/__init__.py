"""File storage behind file:// and s3:// URIs. Files are written as a whole: readers never see partial content.

Start with `open_storage`; `base.Storage` is the interface. No caching here. pyarrow is imported on use.
"""

from typing import TYPE_CHECKING

from pipeline.lazy import lazy
from pipeline.storage.base import Block, Entry, Storage, storage_error, storage_errors
from pipeline.storage.local import broken_links, local_entry
from pipeline.storage.s3_errors import is_transient
from pipeline.storage.uri import cache_folder, open_storage, split_uri

if TYPE_CHECKING:
    from pipeline.storage.arrow import arrow_files
else:
    __getattr__ = lazy(__name__, arrow="arrow_files")
