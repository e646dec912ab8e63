"""What the optimisations of a generation came to: noted in its picture, counted here.

A target above what any generation has changes nothing, and one far below is not reached:
neither shows in the pictures, so both are told.
"""

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from copymit.mitigation.registry import active
from copymit.scores.similarity import Scores


def score_optimisations(
    notes: Sequence[Mapping[str, str]], mitigation: ConfigDict
) -> Scores:
    """Counts generations that were above a target, and those that stayed above it.

    Args:
      notes: of each picture.
      mitigation: the section `mitigation.generate` they were made with.
    Returns:
      For each target that is set `num_*_optimised` and `num_*_still_above_target`, and
      `warnings`; nothing of pictures without notes.
    """
    scores: Scores = {"warnings": []}
    for m in active("generate", mitigation):
        if m.calibration is None:
            continue
        target, quantile = m.calibration.target, m.calibration.quantile
        if not all(target.name in note for note in notes):
            continue
        (limit,) = (s.name for s in m.settings if s.name.endswith("_iterations"))
        what = target.name.removesuffix("_target") + "s"
        steps = [int(note[target.name]) for note in notes]
        above = sum(count > 0 for count in steps)
        still = sum(count >= mitigation[limit] for count in steps)
        scores[f"num_{what}_optimised"] = above
        scores[f"num_{what}_still_above_target"] = still
        asked = target if mitigation[target.name] else quantile
        setting = f"mitigation.{asked.path}={mitigation[asked.name]:g}"
        if not above:
            scores["warnings"].append(
                f"{setting} changed nothing: no generation was above it"
            )
        if still:
            scores["warnings"].append(
                f"{setting} was not reached by {still} of {len(steps)} generations in "
                f"{mitigation[limit]} steps ({limit})"
            )
    return scores
