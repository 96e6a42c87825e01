"""`python -m genkit_cli` and `accelerate launch -m genkit_cli` are the `genkit` command."""

from genkit_cli.main import main

main()
