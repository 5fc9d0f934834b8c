"""Predictive maintenance of machines: a seeded simulation, models of it in MLflow, features of it in Feast."""
