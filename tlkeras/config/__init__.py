"""Recipes: read from YAML, validated into frozen objects."""
