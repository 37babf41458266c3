"""Programs compiled for devices that are not there, and what they would cost.

Nothing is computed here: arrays are shapes. A new chip belongs here.
"""
