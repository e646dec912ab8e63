"""From a model or a set of images to the numbers and the page; `evaluate` is the API."""

from copymit.evaluation.api import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
