"""Hostile and broken input: seeded cases against everything that reads what others wrote.

`python -m tests.fuzz --help` runs them for as long as one likes; test_campaign.py runs a short form of the same.
"""
