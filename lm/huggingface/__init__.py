"""Published weights and tokenizers in the formats of Hugging Face, in and out."""
