"""Other projects' models: reading their files, and importing their tokenizers."""
