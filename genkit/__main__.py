"""`python -m genkit` is the `genkit` command."""

import runpy

# By name, since the core does not depend on the command line.
runpy.run_module("genkit_cli", run_name="__main__", alter_sys=True)
