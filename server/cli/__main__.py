"""`python -m server.cli`: the same as `recparams`."""

from server.cli import main

main()
