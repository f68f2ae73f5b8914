"""Curation: remove duplicate captions, order the rest at random, write shards of equal size."""
