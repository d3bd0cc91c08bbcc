"""Does a policy use its task id?"""

from taskcond.diagnostics.confusion import TaskConfusion, task_confusion
from taskcond.diagnostics.diagnose import PolicyFunctions, diagnose
from taskcond.diagnostics.effect import ActionEffect, action_effect, prompt_effect
from taskcond.diagnostics.findings import Diagnosis, Finding, Measurements, Passed
from taskcond.diagnostics.interval import wilson_interval
from taskcond.diagnostics.learning import TableLearning, table_change, table_gradient
from taskcond.diagnostics.losses import losses_by_task
from taskcond.diagnostics.probe import ObservationProbe, observation_probe
from taskcond.diagnostics.table import TableReport, table_report

__all__ = [
    "ActionEffect",
    "Diagnosis",
    "Finding",
    "Measurements",
    "ObservationProbe",
    "Passed",
    "PolicyFunctions",
    "TableLearning",
    "TableReport",
    "TaskConfusion",
    "action_effect",
    "diagnose",
    "losses_by_task",
    "observation_probe",
    "prompt_effect",
    "table_change",
    "table_gradient",
    "table_report",
    "task_confusion",
    "wilson_interval",
]
