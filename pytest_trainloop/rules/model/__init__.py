"""Rules about the model: modules registered, called and built where they count."""
