"""``python -m sweeps`` is the console script."""

from sweeps.cli import main

main()
