"""Jobs: work that must not stall serving, in processes of its own (`python -m server.jobs`).

The parent passes its settings by environment, the job's arguments on the command line; results and
files go through standard input and output, logs to standard error.
"""
