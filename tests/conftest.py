"""What holds for all tests.

Ray reads its token once, when it is first imported: so it is set before any test is.
"""

import gc
import os

from tests.ray.clusters import TOKEN

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)


def pytest_collection_finish() -> None:
    """Workers collect garbage whenever they let go of a model. That takes a hundredth of the time
    without what is there before the first test, and stays."""
    gc.collect()
    gc.freeze()
