"""Lanes take turns by deficit round robin (Shreedhar & Varghese 1995), in seconds of the device."""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator

from utils.devices import Precision
from utils.serving.jobs import Job
from utils.serving.lane import Lane, LaneKey, lane_key
from utils.serving.models import ModelKey, model_key
from utils.serving.weights import LoadedDiffusion

QUANTUM = 0.05  # seconds of the device for each job of a lane, in each round
MOST_LANES = 32  # that are remembered, with what was measured of them


class Rotation:
    """The lanes, the one whose turn it is first. The engine's thread alone uses it.

    A lane that has used more than its share, since one of its calls is long, waits until the others
    have had as much for each of their jobs. So a job's share does not depend on the size of the
    images that others ask for.
    """

    def __init__(self, precision: Precision):
        self._precision = precision
        self._lanes: OrderedDict[LaneKey, Lane] = OrderedDict()

    def __iter__(self) -> Iterator[Lane]:
        return iter(tuple(self._lanes.values()))

    @property
    def jobs(self) -> list[Job]:
        """Of all lanes."""
        return [share.job for lane in self for share in lane.shares.values()]

    def models_in_use(self) -> set[ModelKey]:
        return {model_key(job) for job in self.jobs}

    def least_used_model(self) -> ModelKey | None:
        """That of the fewest jobs; None: there are no jobs."""
        counts = Counter(model_key(job) for job in self.jobs)
        return min(counts, key=lambda key: counts[key], default=None)

    def lane_of(self, job: Job, model: LoadedDiffusion) -> Lane:
        """The lane that a job belongs to, made where there is none yet."""
        key = lane_key(job)
        lane = self._lanes.get(key)
        if lane is None or lane.loaded is not model:
            self._forget_idle()
            request = job.request
            lane = Lane(
                model,
                request.image_size,
                self._precision,
                request.sampling.guide_scale,
                request.sampling.guide_labels,
            )
            self._lanes[key] = lane
        return lane

    def forget_models(self, kept: Iterable[LoadedDiffusion]) -> None:
        """Idle lanes let go of networks that are not in memory for anyone else."""
        ids = {id(model) for model in kept}
        for key, lane in tuple(self._lanes.items()):
            if not lane.shares and id(lane.loaded) not in ids:
                del self._lanes[key]

    def next(self) -> Lane | None:
        """The lane whose turn it is; None where no lane has a job."""
        if not self.jobs:
            return None
        while True:
            key, lane = next(iter(self._lanes.items()))
            if lane.shares and lane.deficit <= 0:
                lane.deficit += QUANTUM * len(lane.shares)
            if lane.shares and lane.deficit > 0:
                return lane
            if not lane.shares:
                lane.deficit = 0.0  # nothing is saved up
            self._lanes.move_to_end(key)

    def used(self, lane: Lane, seconds: float) -> None:
        """The lane has had the device for so long. With its share used up, the next one's turn
        comes.
        """
        lane.deficit -= seconds
        if lane.deficit <= 0:
            for key, other in self._lanes.items():
                if other is lane:
                    self._lanes.move_to_end(key)
                    return

    def _forget_idle(self) -> None:
        idle = [key for key, lane in self._lanes.items() if not lane.shares]
        while idle and len(self._lanes) >= MOST_LANES:
            del self._lanes[idle.pop(0)]
