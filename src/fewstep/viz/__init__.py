"""Pictures of samples and of runs: image grids, contact sheets, curves, the HTML report, and the dashboard of a run in the plane."""
