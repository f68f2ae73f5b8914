"""Scores of an encoder on labelled pictures; the command is in `trainer.evaluate.__main__`."""
