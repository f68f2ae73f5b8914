"""Scores an encoder on labelled pictures; see `trainer.evaluate.__main__` for the command."""
