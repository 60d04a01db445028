"""One training run, from a recipe to a finished run directory."""
