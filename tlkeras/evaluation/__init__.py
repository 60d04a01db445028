"""Figures with their doubt."""
