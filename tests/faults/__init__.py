"""Faults that are caused for real: killed processes, failing disks and folders, bad networks, jumping clocks."""
