"""n-gram models: counting, smoothing, the model, and files in ARPA format."""
