"""Every figure that a page of ours claims: a script, and its dated result."""
