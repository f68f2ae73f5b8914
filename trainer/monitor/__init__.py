"""Monitoring of a training: metrics and online kNN."""
