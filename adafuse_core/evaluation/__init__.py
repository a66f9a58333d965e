"""Evaluation of ensembles: tasks, metrics, statistics, the runner, results and reports. It runs on local data only."""
