"""What a person is told at the end of an evaluation, and a pipeline by the exit code."""

import json
from collections.abc import Collection

from etils import epath

from copymit.storage import absolute

TOO_MANY_COPIES = 3  # the exit code; 1 is a mistake of any other kind
_FILES = {
    "copies": "copies side by side",
    "generations.csv": "a row a generation",
    "scores.json": "all numbers",
}


def conclude(
    directory: epath.Path, stages: Collection[str], fail_above: float | None
) -> int:
    """Prints the answer, the numbers that matter and the paths; returns the exit code.

    Args:
      directory: of an evaluation.
      stages: that were run; without scores there is nothing to say.
      fail_above: share of copies above which the exit code is `TOO_MANY_COPIES`.
    """
    if not {"score", "report"} & set(stages):
        return 0
    # The page's sentences; whole libraries that no program needs before its end.
    from copymit.report.summary import align, summary_rows
    from copymit.report.verdict import answer

    scores = json.loads((directory / "scores.json").read_text())
    paths = [(what, absolute(directory / name)) for name, what in _FILES.items()]
    there = [(what, str(path)) for what, path in paths if path.exists()]
    print(answer(scores), "", *align(summary_rows(scores)), "", *align(there), sep="\n")
    if "report" in stages:
        print(
            absolute(directory / "report.html")
        )  # alone, for whoever takes the last line
    if fail_above is not None and scores["copied_share"] > fail_above:
        return TOO_MANY_COPIES
    return 0
