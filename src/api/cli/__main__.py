"""`python -m api.cli` is `tickets`."""

from api.cli import main

main()
