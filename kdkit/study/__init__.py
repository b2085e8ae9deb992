"""The study kit: names for the engine's objects, so that a run can be described in a line, found
again, swept, drawn and compared with the papers."""
