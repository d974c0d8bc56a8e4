"""Word vectors: one table of vectors for words and another for their contexts."""
