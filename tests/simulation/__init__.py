"""Whole histories of a cluster in virtual time: one seed is one history.

The roles, the store and the journals are the real ones. Time, the broker, the network between
the nodes and the machines are simulated, in one thread, and a seed decides all that is random.
"""
