"""`python -m worker`: the same as `worker`."""

from worker.cli import main

main()
