"""From a run to files that another program serves."""
