"""What a mitigation is: the record that its file holds, and that everything else reads.

A file of `methods/` has its idea whole: names, settings with limits and units, the
published strength and its source, what it needs, and the function at its stage. No list
of mitigations is kept anywhere: defaults, checks, `mitigation.apply`, sweeps and docs come
from the records, through `registry`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int

from copymit.data.captions import CaptionFunction
from copymit.diffusion.noise_scheduler import NoiseScheduler, PredictionType
from copymit.diffusion.objective import Draw, Noised
from copymit.diffusion.sampler import Step
from copymit.diffusion.trajectory import Trajectory
from copymit.mitigation.guidance import GuidanceSchedule
from copymit.mitigation.rewriting import Decode, Rewrite
from copymit.mitigation.scene import Scene
from copymit.models.attention_control import CrossAttentionControl

Value = bool | int | float
Values = Mapping[str, Any]
"""The settings of one section, `train` or `generate`, by name: those of all mitigations."""

Need = Literal[
    "captions of images",
    "several captions",
    "captions that are embedded while training",
    "a caption beside the empty one",
    "guidance",
    "training images",
]


class Words(NamedTuple):
    """What captions can be made of.

    Attributes:
      decode: token ids to text.
      class_names: of the data set; () without classes.
    """

    decode: Decode
    class_names: Sequence[str] = ()


Caption = Callable[[Values, Words], Callable[[CaptionFunction], CaptionFunction]]
TrainingText = Callable[[Values, jax.Array, jax.Array], jax.Array]
Keep = Callable[[Values, Float[Array, "B h w c"]], Bool[Array, " B"]]
Noising = Callable[[Values, NoiseScheduler, jax.Array, Draw, jax.Array], Noised]
Prompt = Callable[[Values, Decode], Rewrite]
Text = Callable[[Values, Float[Array, "1 L D"], jax.Array], Float[Array, "1 L D"]]
Attention = Callable[
    [Values, Int[Array, "B L"], Bool[Array, " B"]], CrossAttentionControl
]
Steps = Int[Array, " B"] | None
Noise = Callable[
    [Values, Scene, jax.Array, Callable[[int], jax.Array]], tuple[jax.Array, Steps]
]
Embedding = Callable[[Values, Scene, jax.Array], tuple[jax.Array, Steps]]
Guidance = Callable[[Values, float, int], GuidanceSchedule]
Guided = Callable[[jax.Array], jax.Array]
Scales = Callable[[Values, Scene, Step, Guided, jax.Array], jax.Array]
Prediction = Callable[[Values, Scene, Step, jax.Array], jax.Array]


class Setting(NamedTuple):
    """A number, or a switch, under `mitigation.`.

    Attributes:
      path: `train.NAME` or `generate.NAME`.
      default: as published, or what switches off.
      meaning: with its unit.
      least, most: that make sense.
    """

    path: str
    default: Value
    meaning: str
    least: float = 0
    most: float = 1

    @property
    def section(self) -> str:
        """`train` or `generate`."""
        return self.path.partition(".")[0]

    @property
    def name(self) -> str:
        """What it is called within its section."""
        return self.path.partition(".")[2]


class Calibration(NamedTuple):
    """How a threshold is found for a model: as a quantile of prompts not memorised.

    Attributes:
      quantile: the setting that asks for it.
      target: the setting that it stands for.
      measure: (values, scene, initial noise) -> what the target is compared with, one
        number a prompt.
    """

    quantile: Setting
    target: Setting
    measure: Callable[[Values, Scene, jax.Array], Float[Array, " B"]]


class Circumstances(NamedTuple):
    """What a mitigation at generation is to act in.

    Attributes:
      num_train_timesteps: of the model.
      guidance_scale: of the sampling.
      prediction_type: of the network.
      trajectory: of the sampler, where it is known already.
    """

    num_train_timesteps: int
    guidance_scale: float
    prediction_type: PredictionType
    trajectory: Trajectory | None = None


class Mitigation(NamedTuple):
    """A mitigation: what it is called and what it does.

    It has a function at one stage, or at several. They get the values of their section
    first, and are called only where the mitigation is on. Those of one stage act in the
    order of `order` and then of names, in whatever order they were asked for.

    Attributes:
      name: by which `mitigation.apply` knows it.
      aliases: in papers and their code.
      what: it does, in one line.
      settings: the first one switches it on.
      strength: of that one where none is given; the published one where it fits all
        models.
      published: its authors' setting, in their words.
      changed: what is different here, and why; "" for nothing.
      source: paper and code.
      label: in tables of sweeps, where the strength follows it.
      tried: strengths in sweeps, as numbers or quantiles ("q0.9"); where time is short the
        first one alone, and () leaves it out.
      tried_small: the same for the small preset, where others fit it.
      needs: what it cannot do without.
      beside: names of mitigations of which one must be on, too.
      order: among those of its stage.
      calibration: of its threshold, where that can be.
      check: (values, circumstances) -> what cannot be, to be read after
        "SETTING=VALUE", or None.
      caption: changes captions of a training; on the host.
      training_text: changes embeddings "B L D" of a training, by a key; on the device.
      keep: (values, what the caption changes of the predicted noise) -> which examples of
        a batch are trained on.
      noising: (values, noise scheduler, latents, draw of the step, a key of each image)
        -> what a training sees and asks for; at most one of them can be on.
      prompt: rewrites prompts of a generation; on the host.
      text: changes the embedding of one text of a generation by a key; on the device.
      attention: (values, token ids of the rows, which of them have the prompt and not
        the negative one) -> control of cross-attention.
      noise: (values, scene, initial noise, number -> other noise) -> (initial noise,
        steps that this took).
      embedding: (values, scene, initial noise) -> (embeddings of the prompts, steps).
      guidance: (values, guidance scale, number of steps) -> schedule of the scale.
      scales: (values, scene, step, scales -> prediction, scales) -> scales.
      prediction: (values, scene, step, prediction) -> prediction.
    """

    name: str
    aliases: tuple[str, ...]
    what: str
    settings: tuple[Setting, ...]
    strength: Value
    published: str
    changed: str
    source: str
    label: str = ""
    tried: tuple[Value | str, ...] = ()
    tried_small: tuple[Value | str, ...] | None = None
    needs: frozenset[Need] = frozenset()
    beside: tuple[str, ...] = ()
    order: int = 0
    calibration: Calibration | None = None
    check: Callable[[Values, Circumstances], str | None] = lambda *_: None
    caption: Caption | None = None
    training_text: TrainingText | None = None
    keep: Keep | None = None
    noising: Noising | None = None
    prompt: Prompt | None = None
    text: Text | None = None
    attention: Attention | None = None
    noise: Noise | None = None
    embedding: Embedding | None = None
    guidance: Guidance | None = None
    scales: Scales | None = None
    prediction: Prediction | None = None

    @property
    def switch(self) -> Setting:
        """The setting that switches it on."""
        return self.settings[0]

    def on(self, values: Values) -> bool:
        """Says whether it is asked for."""
        quantile = self.calibration and values[self.calibration.quantile.name]
        return bool(values[self.switch.name] or quantile)
