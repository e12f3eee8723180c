"""The linter: engine, configuration, fixes, reports, command line."""
