"""Learns an encoder from the image shards of a run; see `trainer.train` for the command."""
