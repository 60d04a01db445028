"""Augmentation: policies of random operations, and numbered, repeatable views."""
