"""Trainings over HTTP: choose images and options, start, watch, stop, resume, evaluate, use."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Path as PathParameter
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from utils.runs.names import SAMPLES, SLIM
from utils.serving.http.errors import answers
from utils.serving.http.training_models import (
    DataAnswer,
    DeleteQuestion,
    EvaluateQuestion,
    LogAnswer,
    MetricsAnswer,
    NameAnswer,
    OptionsAnswer,
    PlanAnswer,
    Points,
    PromoteQuestion,
    ResumeQuestion,
    RunAnswer,
    RunDetailAnswer,
    RunsAnswer,
    TrainingQuestion,
    WeightAnswer,
    preset_answers,
    resume_question,
    training_question,
)
from utils.serving.http.watching import StreamPlaces
from utils.serving.processes import Trainings
from utils.serving.refusal import Refusal, not_found
from utils.serving.run_facts import PREVIEW_TYPES
from utils.serving.run_log import read_log
from utils.serving.run_state import Run
from utils.serving.safe_files import open_below
from utils.serving.training_plan import Planner
from utils.serving.training_refusals import conflict, invalid

if TYPE_CHECKING:
    from utils.serving.services import Services

SECONDS_BETWEEN_LOOKS = 1.0  # of a stream of events
LARGEST_PREVIEW = 2**27  # bytes
PNG = "image/png"

Name = Annotated[str, PathParameter(min_length=1, max_length=1000)]


def build_router(services: "Services") -> APIRouter:
    """Everything below /v1/data, /v1/training and /v1/runs. services.training must be there."""
    trainings = services.training
    assert trainings is not None
    router = APIRouter(prefix="/v1", tags=["training"])
    add_data_routes(router, trainings)
    add_form_routes(router, trainings)
    add_start_routes(router, trainings, services)
    add_run_routes(router, trainings, services)
    add_reading_routes(router, trainings, services)
    return router


def add_data_routes(router: APIRouter, trainings: Trainings) -> None:
    """The folders of images."""

    @router.get("/data", responses=answers())
    def data_folders() -> DataAnswer:
        """The folders of images that a training may use."""
        return DataAnswer.model_validate(
            {"folders": [asdict(folder) for folder in trainings.data.all()]}
        )

    @router.get(
        "/data/{name}/samples",
        response_class=Response,
        responses={**answers(404, 409, 422), 200: {"content": {PNG: {}}}},
    )
    def samples(name: Name, count: Annotated[int, Query(ge=1, le=64)] = 8) -> Response:
        """Some images of a folder in one picture."""
        return Response(trainings.data.samples(name, count), media_type=PNG)


def add_form_routes(router: APIRouter, trainings: Trainings) -> None:
    """What may be chosen, and what it would do."""
    planner = Planner(trainings)
    Question = training_question(trainings.form)

    @router.get("/training/options", responses=answers())
    def options() -> OptionsAnswer:
        """The options of tools/train.py, as far as they are offered."""
        return OptionsAnswer.model_validate(
            {
                "groups": [asdict(group) for group in trainings.form.groups()],
                "presets": preset_answers(trainings.form),
            }
        )

    @router.post("/training/plan", responses=answers(400, 404, 422, 429, 500, 503, 504))
    def plan(question: Question) -> PlanAnswer:  # type: ignore[valid-type]
        """What a training would do, before it is started: some seconds of work."""
        asked = cast(TrainingQuestion, question)
        found = planner.plan(asked.run_name, asked.dataset, values_of(asked.options))
        return PlanAnswer(text=found.text, warnings=found.warnings)


def add_start_routes(router: APIRouter, trainings: Trainings, services: "Services") -> None:
    """Starting, resuming and stopping."""
    Question = training_question(trainings.form)
    Resumption = resume_question(trainings.form)

    @router.post("/runs", status_code=202, responses=answers(400, 404, 409, 422, 429, 500))
    def start(question: Question) -> RunAnswer:  # type: ignore[valid-type]
        """Queue a training. It starts at once where none runs, and goes on without the server."""
        asked = cast(TrainingQuestion, question)
        run = trainings.enqueue(asked.run_name, asked.dataset, values_of(asked.options))
        return describe_run(run, services)

    @router.post(
        "/runs/{name}/resume", status_code=202, responses=answers(400, 404, 409, 422, 429, 500)
    )
    def resume(
        name: Name,
        question: Resumption | None = None,  # type: ignore[valid-type]
    ) -> RunAnswer:
        """Continue from the last checkpoint, also after a crash; with more epochs, a finished run
        too.
        """
        asked = cast(ResumeQuestion, question or cast(Any, Resumption)())
        run = trainings.resume(name, values_of(asked.options), asked.allow_changes)
        return describe_run(run, services)

    @router.post("/runs/{name}/stop", status_code=202, responses=answers(404, 409, 422, 500))
    def stop(name: Name) -> RunAnswer:
        """Have the run save and end. A second stop, some seconds later, kills it."""
        return describe_run(trainings.stop(name), services)

    @router.delete("/runs/{name}/queue", responses=answers(404, 409, 422, 500))
    def leave_queue(name: Name) -> NameAnswer:
        """Take a training out of the queue."""
        trainings.unqueue(name)
        return NameAnswer(name=name)


def add_run_routes(router: APIRouter, trainings: Trainings, services: "Services") -> None:
    """What there is, and what can be done with a run that has been trained."""

    @router.get("/runs", responses=answers())
    def runs() -> RunsAnswer:
        """All runs, the newest first."""
        return RunsAnswer(runs=[describe_run(run, services) for run in trainings.all()])

    @router.get("/runs/{name}", responses=answers(404, 422))
    def one(name: Name) -> RunDetailAnswer:
        run = trainings.find(name)
        return RunDetailAnswer(**describe_run(run, services).model_dump(), options=run.options)

    @router.delete("/runs/{name}", responses=answers(400, 404, 409, 422, 500))
    def delete(name: Name, question: DeleteQuestion) -> NameAnswer:
        """Delete a run with all of its files, for good."""
        trainings.find(name)
        if question.confirm != name:
            raise invalid("confirm must be the name of the run", "confirm")
        trainings.delete(name)
        return NameAnswer(name=name)

    @router.post(
        "/runs/{name}/evaluate", status_code=202, responses=answers(400, 404, 409, 422, 500)
    )
    def evaluate(name: Name, question: EvaluateQuestion | None = None) -> RunAnswer:
        """Compare generated images with those of the data folder, in the background."""
        asked = question or EvaluateQuestion()
        run = trainings.evaluate(name, asked.num_images, asked.sample_steps)
        return describe_run(run, services)

    @router.post("/runs/{name}/promote", responses=answers(400, 404, 409, 422))
    def promote(name: Name, question: PromoteQuestion) -> WeightAnswer:
        """Serve a checkpoint of the run; the answer is the name to generate with."""
        run = trainings.find(name)
        if question.file not in [each.file for each in run.checkpoints]:
            raise not_found("the run has no such file", "file")
        if services.weights is not None:
            services.weights.scan()
        names = weight_names(run.folder, services)
        weight = names.get(question.file)
        if weight is None:
            advice = "use ema_last.pt"
            if SLIM not in names:
                advice = "the server's --weights do not name this folder of runs"
            raise conflict(f"{question.file} is not served: {advice}", "not_served")
        return WeightAnswer(weight=weight)


def add_reading_routes(router: APIRouter, trainings: Trainings, services: "Services") -> None:
    """What a run has written."""

    def run_of(name: Name) -> Run:
        return trainings.find(name)

    Found = Annotated[Run, Depends(run_of)]

    @router.get("/runs/{name}/metrics", responses=answers(404, 422))
    def metrics(run: Found, max_points: Points = 500) -> MetricsAnswer:
        """The curves; of a long run, neighbouring steps are averaged."""
        columns, evaluations = trainings.curves.of(run.folder).read(max_points)
        found = [{**asdict(each), "is_best": each.step == run.best_step} for each in evaluations]
        return MetricsAnswer.model_validate({"columns": columns, "evaluations": found})

    @router.get("/runs/{name}/log", responses=answers(404, 422))
    def log(run: Found, after: Annotated[int, Query(ge=0, le=2**53)] = 0) -> LogAnswer:
        """What the run prints, from a byte on, in pieces."""
        return LogAnswer(**asdict(read_log(run.folder, after, trainings.roots)))

    @router.get(
        "/runs/{name}/previews/{file}",
        response_class=Response,
        responses={
            **answers(404, 422),
            200: {"content": {kind: {} for kind in sorted(set(PREVIEW_TYPES.values()))}},
        },
    )
    def preview(run: Found, file: Name) -> Response:
        """A grid of samples, drawn while the run was trained."""
        if file not in [each.file for each in run.previews]:
            raise not_found("the run has no such preview", "file")
        try:
            with open_below(run.folder, SAMPLES, file) as stream:
                data = stream.read(LARGEST_PREVIEW)
        except OSError:
            raise not_found("the preview cannot be read", "file") from None
        kind = PREVIEW_TYPES[file.rpartition(".")[2]]
        return Response(data, media_type=kind, headers={"X-Content-Type-Options": "nosniff"})

    @router.get(
        "/runs/{name}/events",
        response_class=EventSourceResponse,
        responses=answers(404, 422, 429),
        dependencies=[Depends(StreamPlaces(services.limits.max_streams))],
    )
    async def events(run: Found) -> AsyncIterator[ServerSentEvent]:
        """Events `run` with the run whenever it has changed, and `gone` where it is deleted."""
        async for event in run_events(run.name, trainings, services):
            yield event


async def run_events(
    name: str, trainings: Trainings, services: "Services"
) -> AsyncIterator[ServerSentEvent]:
    """The run at once, and then whenever something has changed, until the server closes."""

    def look() -> RunAnswer | None:
        try:
            return describe_run(trainings.find(name), services)
        except Refusal:
            return None

    seen: RunAnswer | None = None
    while not trainings.is_closing.is_set():
        found = await asyncio.to_thread(look)
        if found is None:
            yield ServerSentEvent(event="gone", data={"name": name})
            return
        if found != seen:
            seen = found
            yield ServerSentEvent(event="run", data=found)
        await asyncio.sleep(SECONDS_BETWEEN_LOOKS)


def values_of(options: BaseModel) -> dict[str, Any]:
    """The options that were given."""
    return options.model_dump(exclude_none=True)


# --- Answers ---


def describe_run(run: Run, services: "Services") -> RunAnswer:
    """A run as clients see it."""
    assert services.training is not None
    weights = weight_names(run.folder, services)
    evaluation = services.training.evaluation_of(run)
    address = f"/v1/runs/{quote(run.name, safe='')}/previews"
    facts = {
        name: getattr(run, name)
        for name in RunAnswer.model_fields
        if name not in ("checkpoints", "previews", "evaluation")
    }
    return RunAnswer.model_validate(
        {
            **facts,
            "checkpoints": [
                {**asdict(each), "weight": weights.get(each.file)} for each in run.checkpoints
            ],
            "previews": [
                {**asdict(each), "url": f"{address}/{quote(each.file)}"} for each in run.previews
            ],
            "evaluation": None if evaluation is None else asdict(evaluation),
        }
    )


def weight_names(folder: Path, services: "Services") -> dict[str, str]:
    """The names by which files of a run folder are served."""
    if services.weights is None:
        return {}
    return {
        weight.path.name: weight.name
        for weight in services.weights.all()
        if weight.run == folder.name and weight.path.parent.resolve() == folder
    }
