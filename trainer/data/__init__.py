"""Image shards as batches for one rank."""

from trainer.data.shard_reader import Sample as Sample
from trainer.data.shard_reader import ShardReader as ShardReader
