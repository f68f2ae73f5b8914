"""Data: from image shards to the batches of one rank."""

from trainer.data.shard_reader import Sample as Sample
from trainer.data.shard_reader import ShardReader as ShardReader
