"""What the engine has done since its start, for /metrics and benchmarks."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Statistics:
    """Written by the engine's threads; each number is read on its own."""

    submitted: int = 0  # jobs
    refused: int = 0  # jobs, since the queue was full or the server was about to end
    ended: Counter[str] = field(default_factory=Counter)  # jobs, by status
    images: int = 0
    network_calls: int = 0
    rows: int = 0  # of network calls
    step_seconds: float = 0.0
    failed_calls: int = 0
    out_of_memory: int = 0

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.step_seconds if self.step_seconds else 0.0
