"""Stage-wise training of a model for a temporal pyramid, on a folder of videos and captions."""

from workers.quiet import quiet_libraries

quiet_libraries()  # before its modules import the models, of which some warn then
