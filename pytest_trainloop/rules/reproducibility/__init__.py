"""Rules about seeds and random number generators."""
