"""Objectives: how a batch becomes losses and gradients."""
