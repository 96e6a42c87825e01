"""The speed of genkit and of libraries that do the same work: `python -m benchmarks speed`.

Every module here that has `TITLE`, `measure` and `page` is a section of docs/performance.md.
"""
