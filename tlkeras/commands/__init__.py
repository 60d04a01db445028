"""The commands: options, one library call, print; `tlkeras.cli` gathers them."""
