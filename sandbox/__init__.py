"""The embedded world: a procedural animal, its photos, a labelled set and a web of its own. Nothing real in it."""
