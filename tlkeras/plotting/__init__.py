"""Charts as PNG files and self-contained HTML pages."""
