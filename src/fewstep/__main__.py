"""Run the command line as ``python -m fewstep``."""

from fewstep.cli import main

main()
