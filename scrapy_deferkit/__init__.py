"""Item processing for Scrapy: chained, error-tolerant, parallel and per-element stacks."""

from .addon import Addon
from .breaker import CircuitBreaker
from .downloadermiddlewares import StackDownloaderMiddleware
from .exceptions import (
    CircuitOpen,
    ClosingError,
    DeadLettersError,
    DeadLettersUnavailable,
    DeferKitError,
    JobError,
    MergeConflict,
    NoItemReturned,
    NoRoute,
    StackConfigError,
    StepAborted,
    StepCancelled,
    StepTimeout,
    step_of,
)
from .itemprocessor import DeferKitItemProcessor
from .merge import copy_item, keep_item, merge_changes
from .pipelines import (
    ChainPipeline,
    EachPipeline,
    ParallelPipeline,
    StackPipeline,
    TolerantPipeline,
)
from .policies import Fallback, Limit, Retry, Tap, Timeout
from .scheduler import Scheduler
from .spidermiddlewares import StackSpiderMiddleware
from .stacks import Chain, Each, Parallel, Route, Tolerant
from .stats import StepFigures, step_stats

__all__ = [
    "Addon",
    "Chain",
    "ChainPipeline",
    "CircuitBreaker",
    "CircuitOpen",
    "ClosingError",
    "DeadLettersError",
    "DeadLettersUnavailable",
    "DeferKitError",
    "DeferKitItemProcessor",
    "Each",
    "EachPipeline",
    "Fallback",
    "JobError",
    "Limit",
    "MergeConflict",
    "NoItemReturned",
    "NoRoute",
    "Parallel",
    "ParallelPipeline",
    "Retry",
    "Route",
    "Scheduler",
    "StackConfigError",
    "StackDownloaderMiddleware",
    "StackPipeline",
    "StackSpiderMiddleware",
    "StepAborted",
    "StepCancelled",
    "StepFigures",
    "StepTimeout",
    "Tap",
    "Timeout",
    "Tolerant",
    "TolerantPipeline",
    "copy_item",
    "keep_item",
    "merge_changes",
    "step_of",
    "step_stats",
]
