"""Signals of this package, for ``crawler.signals``."""

item_dead_lettered = object()
"""Sent when an item that failed has been kept as a dead letter.

Handlers get ``item`` (as the failed step left it), ``failure``, ``letter_id`` and ``spider``, and
may be coroutine functions, which are awaited.
"""
