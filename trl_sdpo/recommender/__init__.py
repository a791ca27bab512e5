"""
A trained model as a recommender: a history in, titles with scores out. Its public names are those of `trl_sdpo`: `Recommender`,
`Recommendation`.
"""
