"""
Numbers about rankings: metrics of candidates, statistics, lists from a catalogue, named answers, leaks. Arrays in, numbers out.
"""
