"""Semantic segmentation: an encoder with a head, trained end to end and scored by mIoU.

`trainer.evaluate.protocols.segmentation` puts the parts together.
"""
