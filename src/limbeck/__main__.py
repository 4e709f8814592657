"""``python -m limbeck``: the command line, for launchers that start modules."""

from limbeck.cli import main

main()
