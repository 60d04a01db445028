"""The frozen half: activations computed once, by the fastest engine, and kept."""
