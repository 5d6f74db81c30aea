"""Jobs: work that must not stall serving, in processes of its own, forked from a template.

They are given settings by environment, and arguments; results and files go through standard input
and output, logs to standard error. `python -m recparams_server.jobs` is a job by hand.
"""
