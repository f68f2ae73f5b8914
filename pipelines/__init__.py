"""One module per job; `python -m pipelines STAGE CONFIG` runs one."""
