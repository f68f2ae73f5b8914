"""Images: the producer of image shards."""
