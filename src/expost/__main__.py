"""``python -m expost``."""

import sys

from expost.cli import main

sys.exit(main())
