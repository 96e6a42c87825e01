"""Figures of a tokenizer, what they were measured on, and whether they can be compared."""
