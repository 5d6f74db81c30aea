#!/bin/sh
# numba uses a cache only where it could also write to it, and the image's own is read-only.
set -eu
cp -R --no-preserve=mode "$(dirname "$0")/../numba/." "$NUMBA_CACHE_DIR"
# In place of the shell, so that it is process 1 and gets SIGTERM.
exec recparams "$@"
