"""Rules about memory that grows with the steps."""
