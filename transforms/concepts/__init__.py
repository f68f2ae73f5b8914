"""Concept lists: what captions are written about."""
