"""Programs to read, and to run from a clone: a training loop, and broken twins of it."""
