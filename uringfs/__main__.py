"""``python -m uringfs``."""

import sys

from uringfs.cli import main

sys.exit(main())
