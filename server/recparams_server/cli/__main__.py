"""`python -m recparams_server.cli`: the same as `recparams`."""

from recparams_server.cli import main

main()
