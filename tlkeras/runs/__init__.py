"""The run directory and the predictions stored in it."""
