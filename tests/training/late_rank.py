"""The trainer, of which all processes but the first are late to save: a module to run."""

import time
from typing import Any

from accelerate import Accelerator

from training.tpdiff.__main__ import main

_save = Accelerator.save_state


def _late(self: Accelerator, *inputs: Any) -> Any:
    if not self.is_main_process:
        time.sleep(2)
    return _save(self, *inputs)


if __name__ == "__main__":
    Accelerator.save_state = _late
    main()
