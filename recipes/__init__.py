"""The recipes shipped with tlkeras, as YAML files."""
