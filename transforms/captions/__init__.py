"""Captions: prompts, filters, and the producers of caption and background shards."""
