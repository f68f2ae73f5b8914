"""Concept lists: the concepts that captions are written about."""
