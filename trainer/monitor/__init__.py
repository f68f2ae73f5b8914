"""Monitoring of a training: metrics log, trackers, progress bar and online kNN."""
