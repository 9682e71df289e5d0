"""Ray reads its token once, when it is first imported: so it is set before any test is."""

import os

from tests.ray.clusters import TOKEN

os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN)
