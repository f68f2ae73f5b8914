"""Checkpoints: files, background writer, and resuming on all ranks."""
