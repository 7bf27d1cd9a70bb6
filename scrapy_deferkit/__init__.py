"""Item processing for Scrapy: chained, error-tolerant, parallel and per-element stacks."""

from .downloadermiddlewares import StackDownloaderMiddleware
from .exceptions import (
    ClosingError,
    DeferKitError,
    MergeConflict,
    NoItemReturned,
    StackConfigError,
    StepCancelled,
    step_of,
)
from .merge import copy_item, keep_item, merge_changes
from .pipelines import (
    ChainPipeline,
    EachPipeline,
    ParallelPipeline,
    StackPipeline,
    TolerantPipeline,
)
from .spidermiddlewares import StackSpiderMiddleware
from .stacks import Chain, Each, Parallel, Tolerant

__all__ = [
    "Chain",
    "ChainPipeline",
    "ClosingError",
    "DeferKitError",
    "Each",
    "EachPipeline",
    "MergeConflict",
    "NoItemReturned",
    "Parallel",
    "ParallelPipeline",
    "StackConfigError",
    "StackDownloaderMiddleware",
    "StackPipeline",
    "StackSpiderMiddleware",
    "StepCancelled",
    "Tolerant",
    "TolerantPipeline",
    "copy_item",
    "keep_item",
    "merge_changes",
    "step_of",
]
