"""The `genkit` command."""

from genkit_cli.name import check_name

check_name()
