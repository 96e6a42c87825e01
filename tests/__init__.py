# Without this file, processes that tests start would find the package `tests` that torch-fidelity
# installs instead of this folder.
