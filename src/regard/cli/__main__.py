"""`python -m regard.cli` is the `regard` command."""

from regard.cli import main

main()
