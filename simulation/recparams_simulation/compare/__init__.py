"""Every algorithm, the rules, chance and outside libraries on the same simulated people.

What they do and like is known (recparams_simulation/people/simulator.py), so regret is exact.
`recparams compare` runs it.
"""
