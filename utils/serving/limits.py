"""How much clients may ask for, all in one place."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """Each limit has an answer of its own; see `requests.py`, `engine.py` and `http/`."""

    max_queue: int = 64  # jobs that are not finished
    max_client_jobs: int = 16  # of them of one client
    max_images: int = 64  # of a job
    max_steps: int = 1000
    max_side: int = 1024  # pixels of an image's height and width
    max_body: int = 8_000_000  # bytes of a request
    deadline: float = 600.0  # seconds from the request until its job must be finished
    client_timeout: float = 20.0  # seconds that a client may take to send a request
    keep_seconds: float = 3600.0  # how long the images of a finished job are kept
    keep_bytes: int = 1_000_000_000  # of images that are kept, on disk
    keep_jobs: int = 1000  # finished jobs that are remembered
    max_weights: int = 4  # networks in memory
    max_streams: int = 256  # clients that listen to events

    def to_dict(self) -> dict:
        return asdict(self)
