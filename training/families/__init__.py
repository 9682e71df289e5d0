"""Small models of the demo world in the formats of the other families, to measure with."""
