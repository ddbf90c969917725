"""Pictures: grids, contact sheets, curves, and the report that holds them all."""
