"""Watching and driving a run. torch is imported inside functions only."""
