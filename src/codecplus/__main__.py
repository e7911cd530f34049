"""`python -m codecplus`."""

import sys

from codecplus.cli import main

if __name__ == "__main__":
    sys.exit(main())
