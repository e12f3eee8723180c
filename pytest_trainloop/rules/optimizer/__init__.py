"""Rules about the optimizer: what it holds, when it is built and stepped."""
