"""The networks in memory, each loaded in a thread of its own; who has not been used makes room."""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable

from utils.devices import Precision
from utils.errors import UserError
from utils.serving.jobs import Job
from utils.serving.weights import LoadedDiffusion

ModelKey = tuple  # (path of the weights, which state of that file, use_ema)
LoadFunction = Callable[..., LoadedDiffusion]  # of a weight, use_ema and a precision

logger = logging.getLogger("serve")


def model_key(job: Job) -> ModelKey:
    """Which network a job needs."""
    request = job.request
    return (request.weight.path, request.weight.stamp, request.use_ema)


class ModelCache:
    """At most `max_models` networks. The engine's thread alone uses it, except for loading."""

    def __init__(
        self,
        load: LoadFunction,
        precision: Precision,
        max_models: int,
        wake: Callable[[], None],  # called by a loading thread that has ended
    ):
        self._load = load
        self._precision = precision
        self._max_models = max_models
        self._wake = wake
        self._models: OrderedDict[ModelKey, LoadedDiffusion] = OrderedDict()  # last used last
        self._loading: set[ModelKey] = set()
        self._loaded: deque[tuple[ModelKey, LoadedDiffusion | None]] = deque()

    def get(self, job: Job, in_use: Iterable[ModelKey]) -> LoadedDiffusion | None:
        """The job's network. None: it is being loaded, or has to wait until one of those `in_use`
        is used no more.
        """
        key = model_key(job)
        if key in self._models:
            self._models.move_to_end(key)
            return self._models[key]
        if key not in self._loading and self._make_room(set(in_use)):
            self._loading.add(key)
            loader = threading.Thread(target=self._load_one, args=(key, job), daemon=True)
            loader.start()
        return None

    def is_loading(self, job: Job) -> bool:
        """Whether the job's network is on its way into memory."""
        return model_key(job) in self._loading

    def take_loaded(self) -> list[ModelKey]:
        """Take what has been loaded since the last call; the keys of those that failed."""
        failed = []
        while self._loaded:
            key, model = self._loaded.popleft()
            self._loading.discard(key)
            if model is None:
                failed.append(key)
            else:
                self._models[key] = model
        return failed

    def all(self) -> list[LoadedDiffusion]:
        """Those in memory."""
        return list(self._models.values())

    def _make_room(self, in_use: set[ModelKey]) -> bool:
        """Whether one more network may be loaded; those that nobody uses make room."""
        idle = [key for key in self._models if key not in in_use]
        while idle and len(self._models) + len(self._loading) >= self._max_models:
            del self._models[idle.pop(0)]
        return len(self._models) + len(self._loading) < self._max_models

    def _load_one(self, key: ModelKey, job: Job) -> None:
        """What a loading thread does."""
        weight = job.request.weight
        model = None
        try:
            model = self._load(weight, job.request.use_ema, self._precision)
        except UserError as error:
            logger.error("the weight %s cannot be used: %s", weight.name, error)
        except Exception:
            logger.exception("the weight %s could not be loaded", weight.name)
        self._loaded.append((key, model))
        self._wake()
