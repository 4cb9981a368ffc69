"""swag in loops that others run: a collector for any, and callbacks for Lightning and Transformers.

`Collector` is what the callbacks are made of; it serves accelerate and loops of your own.
``swag.integrations.distributed`` is for ``torch.distributed.checkpoint``.
``swag.integrations.lightning`` and ``swag.integrations.transformers`` need these libraries, and are
imported by name.
"""

from __future__ import annotations

from swag.integrations._collector import Collector

__all__ = ["Collector"]
