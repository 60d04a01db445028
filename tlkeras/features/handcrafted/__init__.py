"""Handcrafted features: descriptors, codebooks and encodings."""
