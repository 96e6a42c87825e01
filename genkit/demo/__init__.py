"""`genkit demo`: a page to play with a tokenizer or a prior, served on this machine."""
