"""What tests of the figures' scripts share with those of workers."""

from tests.workers.conftest import process_switches, tiny_wan

__all__ = ["process_switches", "tiny_wan"]
