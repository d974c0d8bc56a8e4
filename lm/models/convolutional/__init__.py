"""A convolutional text classifier (Kim 2014)."""
