"""Curation: duplicates removed, the rest in random order and in shards of equal size."""
