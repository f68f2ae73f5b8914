"""Batch jobs, one module each; `python -m pipelines JOB CONFIG` runs one."""
