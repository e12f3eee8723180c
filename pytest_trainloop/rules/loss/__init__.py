"""Rules about the loss: what it is given, how it is averaged."""
