"""Rooms of one's own for fewstep: a method, a network and a data set."""
