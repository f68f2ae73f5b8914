"""Losses, and the schedules of their settings."""
