"""Decides the weights: data, objectives, evaluation, calibration, export. Stands on models, never on agent."""
