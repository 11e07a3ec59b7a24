"""The Hydra plugins: sweepers and a launcher. They import no other package of this project, and know a sweep by its interface.

Every Hydra application in this environment imports them when it starts, so that they import nothing heavy at their top.
"""
