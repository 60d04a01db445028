"""Searching over a recipe: KerasTuner proposes, what is frozen in all trials is computed once."""
