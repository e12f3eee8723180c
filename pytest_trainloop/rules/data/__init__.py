"""Rules about data loaders, samplers, workers and replicas."""
