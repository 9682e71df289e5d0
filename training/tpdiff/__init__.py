"""Stage-wise training of a model for a temporal pyramid, on a folder of videos and captions."""
