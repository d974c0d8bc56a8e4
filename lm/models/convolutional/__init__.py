"""The convolutional text classifier of Kim 2014."""
