"""
A recommender to look at and to ask: a page (`trl-sdpo demo`), and HTTP (`trl-sdpo serve`).

Enters: a [`Recommender`]. Leaves: a page, a Space for the Hub, answers in JSON. Binds to this machine unless told otherwise.
"""
