"""Import of checkpoints made by other tools, and export of generators to the formats of other tools."""
