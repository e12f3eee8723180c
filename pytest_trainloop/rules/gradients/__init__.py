"""Rules about gradients: cleared, clipped, attached, applied."""
