"""Rules about checkpoints and resuming."""
