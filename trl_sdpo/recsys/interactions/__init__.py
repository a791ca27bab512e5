"""
The one form that every source is read into, and the registry of sources.

Enters: files, folders, archives, frames, names of published data sets. Leaves: `Interactions`.
"""
