"""One file for each output format of the linter."""
