"""Read results.json, which an evaluation writes. All readers use this module, so that a damaged file is the same error. No torch."""

from pathlib import Path
from typing import Any

from fewstep.errors import UserError, first_line
from fewstep.limits import TooLarge
from fewstep.metrics.figures import BY_KEY
from fewstep.metrics.least import carried
from fewstep.text import read_json


def read_results(run: Path) -> dict[str, Any]:
    """Return the contents of ``results.json`` of a run, without figures that have too few items (`carried`).

    Raises UserError for a file that is missing, damaged or not of an evaluation.
    """
    path = run / "results.json"
    try:
        results = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{run} has no results.json; run `fewstep evaluate {run}` first") from None
    except TooLarge as error:
        raise UserError(f"{error}, or run `fewstep evaluate {run}` again") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}); run `fewstep evaluate {run}` again") from error
    if not _are_results(results):
        raise UserError(f"{path} holds no results; run `fewstep evaluate {run}` again")
    return carried(results)


def _are_results(found: Any) -> bool:
    """Return whether `found`, read from a file, is what an evaluation writes: rows with numbers as figures, and the keys beside them."""
    if not isinstance(found, dict) or not all(key in found for key in ("n", "seed", "data", "features", "reference")):
        return False
    rows = found.get("rows")
    if not isinstance(rows, dict) or not rows or not all(isinstance(row, dict) for row in rows.values()):
        return False
    return all(isinstance(row[key], int | float) for row in rows.values() for key in BY_KEY.keys() & row.keys())
