"""Duplicates, near duplicates, label issues, and the manifest without them."""
