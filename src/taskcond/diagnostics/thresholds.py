"""Thresholds: the values that separate faults from health, and why they are what they are."""

MIN_LOSS_EFFECT = 0.01
"""The least share by which a wrong id must raise the loss.

Most of a flow-matching loss is noise that no id explains, so that even a policy that does what it
is told may gain only some percent. A policy whose loss another id changes by less than 1 % acts by
its observations.
"""

MAX_HARM = 0.01
"""The largest share by which the loss may be lower without an id: noise alone gives less."""

MIN_ACTION_EFFECT = 0.05
"""The least distance of actions between tasks, with that between observations as unit.

Below a twentieth, another task changes an action less than a slightly different observation does.
"""

MIN_PAIR_EFFECT = 0.001
"""The least share by which the id of one task must raise the loss of another one.

It is below `MIN_LOSS_EFFECT`, because two tasks may be alike for most of their time.
"""

MIN_GAP = 0.01
"""The least distance of two rows over their norm: bfloat16 rounds a row by about as much."""

MIN_ROW = 0.01
"""The least norm of a row over that of the time embedding.

Bfloat16 keeps 1/256 of a sum, so that a smaller row is but a few steps of rounding. A row of 1024
features starts at 0.04 by default.
"""

MAX_ROW = 5.0
"""The largest norm of a row over that of the time embedding: the time keeps 4 % of the energy."""

MIN_LEARNING = 0.01
"""The least change or gradient of the table over that of the rest.

With Adam all parameters move about equally far at one learning rate. A hundredth means that the
table is frozen, gets no ids, or has a learning rate that is far too low.
"""

MAX_PROBE = 0.9
"""The largest share of the mistakes of a guess that the nearest observation may correct."""
