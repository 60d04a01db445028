"""Changing the backbone itself: which blocks train, when, and at which rates."""
