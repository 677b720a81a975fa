"""``python -m kinetics_lab.cli``."""

import sys

from kinetics_lab.cli import main

sys.exit(main())
