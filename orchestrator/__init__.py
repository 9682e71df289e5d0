"""Planning, the state of a render, placement, the driver, the command line."""
