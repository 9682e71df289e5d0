"""The demo world and the trainers of the embedded demo model."""
