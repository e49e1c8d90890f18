"""One file system for file:// and s3://: whole files in, whole files out, nothing ever seen half-written.

`open_storage` is the way in; `base.Storage` says what every storage can do. No caching here.
"""

from pipeline.storage.base import Entry, Storage, refusal
from pipeline.storage.s3_errors import arrow_refusal
from pipeline.storage.uri import cache_folder, open_storage, split_uri
