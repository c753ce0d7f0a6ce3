"""Routing traces: what every MoE layer decided for every token of a data set, and the analyses that start from it.

trace = record(model, batches, run, "traces/mine")      # or: zoo trace NAME
trace = open_trace("traces/mine")
report = analyse(trace)
"""

from zoo.trace.analyse import METRICS, analyse, write_report
from zoo.trace.folder import Recorder, open_trace
from zoo.trace.record import record
from zoo.trace.trace import LayerTrace, RoutingTrace

__all__ = ["METRICS", "LayerTrace", "Recorder", "RoutingTrace", "analyse", "open_trace", "record", "write_report"]
