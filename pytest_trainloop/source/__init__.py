"""Reading code: source to facts. Imports neither torch nor pytest."""
