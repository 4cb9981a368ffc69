"""``python -m tests.crash``."""

from __future__ import annotations

import sys

from .campaign import main

sys.exit(main())
