"""What the training API is asked and answers."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from utils.image_facts import LARGEST_SIDE, SMALLEST_SIDE
from utils.options.types import LONGEST_FILE_NAME
from utils.serving.http.fields import AS_WHOLE
from utils.serving.run_curves import MOST_POINTS
from utils.serving.training_form import LONGEST_VALUE, FormOption, TrainingForm

LARGEST_WHOLE_NUMBER = 2**53 - 1
MOST_NUMBERS = 20  # in a list of whole numbers
STRICT = ConfigDict(extra="forbid", strict=True)

Kind = Literal["int", "float", "bool", "choice", "text", "size", "list", "folder"]
State = Literal[
    "queued", "starting", "running", "stopping", "stopped", "finished", "failed", "interrupted"
]
Verdict = Literal["unknown", "not done", "done", "memorises", "worse"]
RunKind = Literal["diffusion", "upscaler", "autoencoder"]

RunName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=LONGEST_FILE_NAME,
        description="the run writes to a folder of that name: no slashes, no dot at its start",
    ),
]
DatasetName = Annotated[
    str, Field(min_length=1, max_length=LONGEST_FILE_NAME, description="name of a data folder")
]
Side = Annotated[int, Field(ge=SMALLEST_SIDE, le=LARGEST_SIDE), AS_WHOLE]
SizeText = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,3}(,[1-9][0-9]{0,3})?$")]
NumbersText = Annotated[str, Field(pattern=r"^(-?[0-9]{1,6}(,-?[0-9]{1,6}){0,19})?$")]
Text = Annotated[str, Field(max_length=LONGEST_VALUE)]
Points = Annotated[int, Field(ge=2, le=MOST_POINTS)]


# --- Questions ---


class TrainingQuestion(BaseModel):
    model_config = STRICT

    dataset: DatasetName
    run_name: RunName
    options: BaseModel


class ResumeQuestion(BaseModel):
    model_config = STRICT

    options: BaseModel
    allow_changes: bool = Field(
        default=False, description="resume even if options or images have changed"
    )


class EvaluateQuestion(BaseModel):
    model_config = STRICT

    num_images: Annotated[int, Field(ge=100, le=100_000), AS_WHOLE] = 1000
    sample_steps: Annotated[int, Field(ge=1, le=1000), AS_WHOLE] = 50


class PromoteQuestion(BaseModel):
    model_config = STRICT

    file: Text = Field(description="a file of the run's checkpoints")


class DeleteQuestion(BaseModel):
    model_config = STRICT

    confirm: Text = Field(description="the name of the run once more")


def training_question(form: TrainingForm) -> type[TrainingQuestion]:
    """The model of a request for a training."""
    return create_model("TrainingQuestion", __base__=TrainingQuestion, options=_options_field(form))


def resume_question(form: TrainingForm) -> type[ResumeQuestion]:
    """The model of a request to resume a run."""
    return create_model("ResumeQuestion", __base__=ResumeQuestion, options=_options_field(form))


def _options_field(form: TrainingForm) -> Any:
    model = options_model(form)
    return (model, Field(default_factory=model))


def options_model(form: TrainingForm) -> type[BaseModel]:
    """The options of a training, each with its kind and bounds; null and left out: the default."""
    fields: dict[str, Any] = {}
    for group in form.groups():
        for option in group.options:
            if option.editable:
                kind = _type_of(option)
                fields[option.name] = (kind | None, Field(default=None, description=option.help))
    return create_model("TrainingOptions", __config__=STRICT, **fields)


def _type_of(option: FormOption) -> Any:
    if option.kind == "int":
        high = LARGEST_WHOLE_NUMBER if option.high is None else int(option.high)
        low = -LARGEST_WHOLE_NUMBER if option.low is None else int(option.low)
        return Annotated[int, Field(ge=low, le=high), AS_WHOLE]
    if option.kind == "float":
        if option.open_low:
            return Annotated[float, Field(gt=option.low, le=option.high, allow_inf_nan=False)]
        return Annotated[float, Field(ge=option.low, le=option.high, allow_inf_nan=False)]
    if option.kind == "bool":
        return bool
    if option.kind == "choice":
        choices = option.choices or ()
        words: Any = Literal[tuple(choices)]
        return bool | words if {"True", "False"} <= set(choices) else words
    if option.kind == "size":
        pair = Annotated[list[Side], Field(min_length=2, max_length=2)]
        return Side | pair | SizeText
    if option.kind == "list":
        number = Annotated[int, Field(ge=-999_999, le=999_999), AS_WHOLE]
        return Annotated[list[number], Field(max_length=MOST_NUMBERS)] | NumbersText
    return Text


# --- Answers ---


class DataClassAnswer(BaseModel):
    name: str
    images: int


class DataFolderAnswer(BaseModel):
    name: str
    images: int
    classes: list[DataClassAnswer]
    size_hint: tuple[int, int] | None = Field(description="height and width of most images")
    error: str | None = Field(description="why it cannot be used")


class DataAnswer(BaseModel):
    folders: list[DataFolderAnswer]


class OptionAnswer(BaseModel):
    name: str
    kind: Kind
    default: bool | int | float | str | None = Field(description="null: not set")
    low: int | float | None
    high: int | float | None
    open_low: bool = Field(description="whether low itself is left out")
    choices: list[str] | None
    help: str
    editable: bool = Field(description="false: it stands beside the options in a request")


class GroupAnswer(BaseModel):
    title: str
    options: list[OptionAnswer]


class PresetAnswer(BaseModel):
    name: str
    about: str
    values: dict[str, bool | int | float | str]


class OptionsAnswer(BaseModel):
    groups: list[GroupAnswer]
    presets: list[PresetAnswer]


class PlanAnswer(BaseModel):
    text: str
    warnings: list[str]


class CheckpointAnswer(BaseModel):
    file: str
    epoch: int | None
    bytes: int
    weight: str | None = Field(description="the name that it is served by")


class PreviewAnswer(BaseModel):
    url: str
    file: str
    epoch: int


class RunEvaluationAnswer(BaseModel):
    state: Literal["running", "finished", "failed"]
    started: float
    num_images: int
    sample_steps: int
    file: str
    error: str | None
    figures: dict[str, float] | None
    floor: dict[str, float] | None = Field(description="between two halves of the real images")


class RunAnswer(BaseModel):
    """A run as it stands. Times are seconds since 1970."""

    name: str
    state: State
    queue_position: int | None = Field(description="trainings before it; null: it does not wait")
    kind: RunKind | None
    step: int | None
    total_steps: int | None
    progress: float | None = Field(description="0 to 1")
    seconds_left: float | None
    sentence: str | None = Field(description="what its evaluations say of it")
    verdict: Verdict | None
    best_step: int | None
    started: float | None
    dataset: str | None
    can_resume: bool
    can_stop: bool
    kill_after: float | None = Field(description="from then on, a second stop kills it")
    error: str | None
    checkpoints: list[CheckpointAnswer]
    previews: list[PreviewAnswer]
    evaluation: RunEvaluationAnswer | None


class RunDetailAnswer(RunAnswer):
    options: dict[str, str] = Field(description="those that differ from their defaults")


class RunsAnswer(BaseModel):
    runs: list[RunAnswer]


class NameAnswer(BaseModel):
    name: str


class WeightAnswer(BaseModel):
    weight: str


class EvaluationAnswer(BaseModel):
    step: int
    held_out_loss: float | None
    training_loss: float | None
    is_best: bool
    scores: dict[str, float]


class MetricsAnswer(BaseModel):
    columns: dict[str, list[float | int | None]]
    evaluations: list[EvaluationAnswer]


class LogAnswer(BaseModel):
    text: str
    start: int = Field(description="the byte at which the text begins")
    end: int = Field(description="the byte behind it")


def preset_answers(form: TrainingForm) -> list[PresetAnswer]:
    presets: Sequence = form.presets
    return [
        PresetAnswer(name=preset.name, about=preset.about, values=preset.values)
        for preset in presets
    ]
