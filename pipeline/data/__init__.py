"""From a source of images to batches: listing, reading, decoding, shards, their mirror, and the order of examples."""
