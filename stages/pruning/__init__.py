"""Importance scores, masks and schedules."""
