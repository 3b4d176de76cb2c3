"""Makes `perf` importable: it is no part of the installed package."""

import sys
from pathlib import Path

# Last, so that `uringfs` is still the installed one and not the checkout's.
sys.path.append(str(Path(__file__).parents[2]))
