"""How fast it is, measured beside what a user would pick instead: `make bench`.

A file a benchmark; README.md here says what each measures and how to read it. Deliberately absent: tests
of time. A benchmark fails only where what it measured is not right.
"""
