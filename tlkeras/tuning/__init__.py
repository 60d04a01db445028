"""Searches over recipe keys: KerasTuner proposes the trials, frozen features are computed once for all of them."""
