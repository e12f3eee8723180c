"""Rules about evaluation: modes, gradients, state."""
