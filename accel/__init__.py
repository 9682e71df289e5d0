"""Accelerations: one technique a file, applied to a model from outside."""
