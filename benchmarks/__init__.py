"""Every figure that a page of ours claims: a script, and its dated result."""

from workers.quiet import quiet_libraries

quiet_libraries()
