"""Finals as DICOM objects: structured report and heat map, written beside the agent by a process of its own."""
