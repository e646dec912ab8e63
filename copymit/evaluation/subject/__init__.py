"""What is evaluated: each kind has its own opener, and all give a `Subject`."""

from copymit.evaluation.subject.finished import open_finished
from copymit.evaluation.subject.images import open_pair
from copymit.evaluation.subject.published import open_model
from copymit.evaluation.subject.subject import Run, Subject
from copymit.evaluation.subject.trained import open_run

__all__ = ["Run", "Subject", "open_finished", "open_model", "open_pair", "open_run"]
