"""`python -m lexray` is `lexray`."""

import sys
from pathlib import Path

if not sys.flags.safe_path and sys.path[0] != str(Path(__file__).parent.parent):
    del sys.path[0]  # the working directory: a module there may bear the name of any library

from lexray.cluster.cli import main

main()
