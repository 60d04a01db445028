"""Augmentation: policies of random operations, and numbered views that can be repeated."""
