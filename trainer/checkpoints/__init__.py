"""Checkpoints: their files, the writer, and how a training resumes."""
