"""`pairs/`: a few generations beside training images, as small JPEG files.

They are what can still be seen of a run whose images have gone (launch/reduce.py), and
what the page of a sweep shows.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from etils import epath

from copymit.report.evaluated_run import EvaluatedRun, Generation, duplicated_weights
from copymit.report.pictures import encode_pair, plain_name
from copymit.storage import write_whole

FOLDER = "pairs"
_SIDE_PX = 128


def write_kept_pairs(
    directory: epath.Path,
    run: EvaluatedRun,
    generations: Sequence[Generation],
    count: int,
) -> dict[str, str]:
    """Writes each of the chosen generations beside what it copies or is nearest to.

    Args:
      directory: of the evaluation; what its `pairs/` held before is removed.
      generations: of the run, the most similar first.
      count: of those to write, at most.
    Returns:
      By generation, the name of its file.
    """
    folder = directory / FOLDER
    if folder.exists():
        folder.rmtree()
    chosen = choose_kept(generations, duplicated_weights(run) or {}, count)
    if chosen:
        folder.mkdir(parents=True, exist_ok=True)
    names = {}
    for i, g in enumerate(chosen, 1):
        names[g.id] = f"{i:02d}-{plain_name(g.id)}.jpg"
        pair = run.read_generation(g.id), run.read_reference(g.shown)
        write_whole(folder / names[g.id], encode_pair(*pair, _SIDE_PX))
    return names


def choose_kept(
    generations: Sequence[Generation], duplicated: Collection[str], count: int
) -> list[Generation]:
    """Chooses the most similar generations, half of them of duplicated images' prompts.

    Where one half is short the other has more. In each half no training image comes
    again before all have been there, or one that many generations resemble would fill it.

    Args:
      generations: the most similar first.
      duplicated: training images that were.
    Returns:
      Those of duplicated images' prompts, then the others.
    """
    seen: Counter[str] = Counter()
    turns = []
    for g in generations:
        turns.append(seen[g.shown])
        seen[g.shown] += 1
    by_turn = [generations[i] for i in sorted(range(len(turns)), key=turns.__getitem__)]
    first = [g for g in by_turn if g.prompted in duplicated]
    rest = [g for g in by_turn if g.prompted not in duplicated]
    first = first[: max(count // 2, count - len(rest))]
    return first + rest[: count - len(first)]
