"""Rules about mixed precision and loss scaling."""
