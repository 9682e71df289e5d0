"""Stage-wise training of a model for a temporal pyramid, on a folder of videos and captions."""

import warnings

from workers.quiet import quiet_libraries

quiet_libraries()  # before its modules import the models, of which some warn then
# Of torch, in bfloat16: norms have weights in float32.
warnings.filterwarnings("ignore", "Mismatch dtype between input and weight", UserWarning)
