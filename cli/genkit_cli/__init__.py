"""The `genkit` command: one file a subcommand."""
